// SPDX-License-Identifier: GPL-2.0

//! Live updates, told step by step.
//!
//! Runs as the first process of a small initramfs, once in each kernel, and refuses to run as any
//! other: it mounts file systems and switches the machine off. In the first one it puts
//! `/payload` into a memfd, preserves that and a manifest with its checksum, loads the next kernel
//! and jumps. In each of the others it takes both back and compares, and hands them on if there is
//! a kernel to come. What it has to say goes to the second serial port if there is one, else to the
//! console; the last two lines are the verdict and `done`.
//!
//! `luo.kernels=FILE,...` on the command line names the kernels after the first, by default
//! `/boot/kernel` alone; `luo.stage=N` is how a kernel knows that it is the Nth. `/payload.name`, if
//! it exists, holds the name to show for the payload.

use liveupdate::{
    cmdline::CommandLine,
    kexec,
    Context,
    Device,
    Outgoing,
    Result,
    Session, //
};
use luo_guest::initramfs::Archive;
use nix::{
    fcntl::{
        fcntl,
        FcntlArg,
        SealFlag, //
    },
    sys::{
        memfd::{
            memfd_create,
            MFdFlags, //
        },
        utsname::uname,
    },
};
use serde_json::{
    json,
    Value, //
};
use sha2::{
    Digest,
    Sha256, //
};
use std::{
    error,
    fmt::{
        self,
        Write as _, //
    },
    fs::{
        self,
        File, //
    },
    io::{
        self,
        Read,
        Seek,
        Write, //
    },
    os::fd::AsFd,
    path::Path,
    process::{
        self,
        ExitCode, //
    },
    time::Instant, //
};

const SESSION: &str = "vm-0";
const TOKEN_MANIFEST: u64 = 0;
const TOKEN_PAYLOAD: u64 = 1;

const PAYLOAD: &str = "/payload";
const KERNELS: &str = "/boot/kernel";

type Outcome<T = ()> = std::result::Result<T, Box<dyn error::Error>>;

fn main() -> ExitCode {
    if process::id() != 1 {
        eprintln!("luo-demo: runs as the first process of an initramfs only (see `make run`)");
        return ExitCode::from(2);
    }
    run()
}

/// Shows the part of the demonstration that this boot is for.
fn run() -> ! {
    if let Err(err) = luo_guest::mount_all() {
        // Nobody can hear it but the kernel's console, which the first process has by default.
        eprintln!("luo-demo: {err}");
        luo_guest::power_off();
    }
    let mut story = match luo_guest::report_port() {
        Ok(port) => Story {
            out: Box::new(port),
        },
        Err(_) => Story {
            out: Box::new(io::stdout()),
        },
    };

    match stage(&mut story) {
        Ok(verdict) => story.line(format_args!("\nLIVE UPDATE PASSED: {verdict}")),
        Err(err) => {
            story.kernel_says();
            story.line(format_args!("\nLIVE UPDATE FAILED: {err}"));
        }
    }
    story.line(format_args!("done"));
    luo_guest::power_off();
}

/// What one kernel does. Returns in the last one, or when something went wrong.
fn stage(story: &mut Story) -> Outcome<String> {
    let mut cmdline = CommandLine::read()?;
    let number: usize = cmdline.get("luo.stage").unwrap_or("1").parse()?;
    let kernels = cmdline.get("luo.kernels").unwrap_or(KERNELS).to_owned();
    let to_come: Vec<_> = kernels.split(',').skip(number.saturating_sub(1)).collect();

    story.line(format_args!(""));
    story.step(
        &format!("kernel {number}"),
        format_args!("{}", this_kernel()?),
    );
    let mut cargo = match number {
        1 => Cargo::load(story)?,
        _ => Cargo::take_over(story)?,
    };
    cargo.route.push(release()?);
    if to_come.is_empty() {
        return cargo.verdict();
    }

    cmdline.set("luo.stage", &(number + 1).to_string());
    load_next(story, &to_come, &cmdline)?;
    // Held until the jump.
    let _session = cargo.hand_over(story)?;
    story.step("kexec", format_args!("leaving Linux {}", release()?));
    Err(kexec::jump().into())
}

/// Where the steps are told.
struct Story {
    out: Box<dyn Write>,
}

impl Story {
    fn line(&mut self, text: fmt::Arguments<'_>) {
        // There is nobody to tell that telling failed.
        let _ = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
    }

    fn step(&mut self, subject: &str, text: fmt::Arguments<'_>) {
        self.line(format_args!("  {subject:<11} {text}"));
    }

    /// Shows what the kernel had to say about live updates lately.
    fn kernel_says(&mut self) {
        let subjects = ["KHO: ", "luo: ", "liveupdate: ", "memfd_luo: "];
        let log = luo_guest::kernel_log(0).unwrap_or_default();
        let mut told: Vec<_> = log
            .iter()
            .filter(|record| subjects.iter().any(|it| record.text.starts_with(it)))
            .collect();

        for record in told.split_off(told.len().saturating_sub(8)) {
            self.step("kernel", format_args!("{}", record.text));
        }
    }
}

/// What is carried, and what is known about it.
struct Cargo {
    memory: File,
    name: String,
    bytes: u64,
    checksum: String,
    /// The kernels that it has seen.
    route: Vec<String>,
    /// Seconds without anybody at work in the last update.
    blackout: Option<f64>,
}

impl Cargo {
    /// Takes the payload out of the initramfs.
    fn load(story: &mut Story) -> Outcome<Self> {
        let name = fs::read_to_string("/payload.name").unwrap_or_else(|_| PAYLOAD.into());
        let name = name.trim_end().to_owned();
        let mut memory = new_memfd(&name)?;
        let (bytes, checksum) = File::open(PAYLOAD)
            .and_then(|mut payload| copy_and_sum(&mut payload, &mut memory))
            .context(|| format!("read {PAYLOAD}"))?;

        // The archive it came in is memory too; a big payload may not fit twice and a half.
        fs::remove_file(PAYLOAD).context(|| format!("remove {PAYLOAD}"))?;
        story.step(
            "payload",
            format_args!("{name}: {}, sha256 {checksum}", Size(bytes)),
        );
        Ok(Self {
            memory,
            name,
            bytes,
            checksum,
            route: Vec::new(),
            blackout: None,
        })
    }

    /// Preserves it, as an agent would do it. The session must stay open until the reboot.
    fn hand_over(self, story: &mut Story) -> Outcome<Session<Outgoing>> {
        let session = Device::open()?.create_session(SESSION)?;
        story.step("session", format_args!("'{SESSION}' created"));

        let start = Instant::now();
        session.preserve(&self.memory, TOKEN_PAYLOAD)?;
        story.step(
            "preserve",
            format_args!(
                "{} bytes preserved under token {TOKEN_PAYLOAD:#x}, in {:.1} ms",
                self.bytes,
                start.elapsed().as_secs_f64() * 1e3
            ),
        );

        let manifest = json!({
            "name": self.name,
            "bytes": self.bytes,
            "sha256": self.checksum,
            "route": self.route,
            "ticks": clock::ticks(),
        })
        .to_string();
        let mut memory = new_memfd("manifest")?;
        memory
            .write_all(manifest.as_bytes())
            .and_then(|()| memory.rewind())
            .context(|| "write the manifest")?;
        fcntl(&memory, FcntlArg::F_ADD_SEALS(all_seals())).context(|| "seal the manifest")?;
        session.preserve(&memory, TOKEN_MANIFEST)?;
        story.step(
            "preserve",
            format_args!(
                "{} bytes of manifest, sealed, preserved under token {TOKEN_MANIFEST:#x}",
                manifest.len()
            ),
        );
        Ok(session)
    }

    /// Retrieves it, and compares it with the manifest.
    fn take_over(story: &mut Story) -> Outcome<Self> {
        let now = clock::ticks();
        let session = Device::open()?.retrieve_session(SESSION)?;
        story.step("session", format_args!("'{SESSION}' retrieved"));

        let mut memory = File::from(session.retrieve(TOKEN_MANIFEST)?);
        let mut text = String::new();
        memory
            .read_to_string(&mut text)
            .context(|| "read the manifest")?;
        let manifest: Value = serde_json::from_str(&text)?;
        let seals = fcntl(&memory, FcntlArg::F_GET_SEALS).context(|| "get the manifest's seals")?;
        if SealFlag::from_bits_truncate(seals) != all_seals() {
            return Err("the manifest came back without its seals".into());
        }
        let incomplete = "the manifest is incomplete";
        let field = |key| manifest[key].as_u64().ok_or(incomplete);
        let text_field = |key| manifest[key].as_str().ok_or(incomplete);
        let route = manifest["route"].as_array().ok_or(incomplete)?;
        let route: Vec<_> = route
            .iter()
            .filter_map(|release| release.as_str().map(str::to_owned))
            .collect();
        story.step(
            "retrieve",
            format_args!(
                "token {TOKEN_MANIFEST:#x}: manifest written by Linux {}, still sealed",
                route.last().ok_or(incomplete)?
            ),
        );
        let blackout = clock::seconds_between(field("ticks")?, now);
        if let Some(seconds) = blackout {
            story.step(
                "blackout",
                format_args!("{seconds:.2} s from the last preserved byte to this kernel's init"),
            );
        }

        let start = Instant::now();
        let mut memory = File::from(session.retrieve(TOKEN_PAYLOAD)?);
        let retrieved = start.elapsed();
        let size = memory.metadata().context(|| "examine the payload")?.len();
        let name = text_field("name")?.to_owned();
        story.step(
            "retrieve",
            format_args!(
                "token {TOKEN_PAYLOAD:#x}: {size} bytes of {name}, in {:.1} ms",
                retrieved.as_secs_f64() * 1e3
            ),
        );

        memory.rewind().context(|| "rewind the payload")?;
        let (bytes, checksum) =
            copy_and_sum(&mut memory, &mut io::sink()).context(|| "read the payload")?;
        if bytes != field("bytes")? {
            return Err(format!("{bytes} bytes came back, not {}", field("bytes")?).into());
        }
        if checksum != text_field("sha256")? {
            story.step("checksum", format_args!("sha256 {checksum}: NOT EQUAL"));
            return Err("the payload came back changed".into());
        }
        story.step("checksum", format_args!("sha256 {checksum}: equal"));

        session.finish()?;
        story.step("session", format_args!("'{SESSION}' finished"));
        Ok(Self {
            memory,
            name,
            bytes,
            checksum,
            route,
            blackout,
        })
    }

    fn verdict(&self) -> Outcome<String> {
        let mut verdict = format!(
            "{} came through live update number {} (Linux {})",
            Size(self.bytes),
            luo_guest::live_update_number()?,
            self.route.join(" -> ")
        );
        if let Some(seconds) = self.blackout {
            write!(verdict, ", {seconds:.2} s of blackout")?;
        }
        Ok(verdict)
    }
}

/// Loads the first of the kernels to come, with an initramfs in which this program and those after
/// it are left.
fn load_next(story: &mut Story, to_come: &[&str], cmdline: &CommandLine) -> Outcome {
    let (&path, later) = to_come.split_first().ok_or("there is no next kernel")?;
    let kernel = File::open(path).context(|| format!("open {path}"))?;
    let initrd = Archive::new(new_memfd("initramfs")?);
    let initrd = pack(initrd, later).context(|| "pack the next initramfs")?;
    let size = |file: &File| file.metadata().map_or(0, |meta| meta.len());

    kexec::load(kernel.as_fd(), Some(initrd.as_fd()), cmdline.as_str())?;
    story.step(
        "kexec",
        format_args!(
            "{path} loaded: {} and {} of initramfs",
            Size(size(&kernel)),
            Size(size(&initrd))
        ),
    );
    Ok(())
}

fn pack(mut archive: Archive<File>, kernels: &[&str]) -> io::Result<File> {
    for name in ["dev", "proc", "sys", "boot"] {
        archive.directory(name)?;
    }
    archive.device("dev/console", 0o600, (5, 1))?;
    archive.copy(Path::new("/init"))?;
    for kernel in kernels {
        archive.copy(Path::new(kernel))?;
    }
    archive.finish()
}

fn new_memfd(name: &str) -> Result<File> {
    memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
        .map(File::from)
        .context(|| "create a memfd")
}

fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

/// Copies all that is left, and tells its size and checksum.
fn copy_and_sum(from: &mut impl Read, to: &mut impl Write) -> io::Result<(u64, String)> {
    let mut sum = Sha256::new();
    let mut bytes = 0;
    let mut chunk = vec![0; 256 << 10];

    loop {
        let len = from.read(&mut chunk)?;
        if len == 0 {
            break;
        }
        sum.update(&chunk[..len]);
        to.write_all(&chunk[..len])?;
        bytes += len as u64;
    }

    let mut hex = String::new();
    for byte in sum.finalize() {
        let _ = write!(hex, "{byte:02x}");
    }
    Ok((bytes, hex))
}

fn release() -> Result<String> {
    let name = uname().context(|| "get the kernel's name")?;

    Ok(name.release().to_string_lossy().into_owned())
}

/// Which kernel this is, how long it has been up and how many live updates came before it.
fn this_kernel() -> Result<String> {
    let uptime = fs::read_to_string("/proc/uptime").context(|| "read /proc/uptime")?;
    let name = uname().context(|| "get the kernel's name")?;

    Ok(format!(
        "Linux {} {}, up {} s, live update number {}",
        name.release().to_string_lossy(),
        name.machine().to_string_lossy(),
        uptime.split(' ').next().unwrap_or("?"),
        luo_guest::live_update_number()?,
    ))
}

/// A number of bytes for people.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A figure with one decimal needs no more precision than this.
        let bytes = self.0 as f64;

        match self.0 {
            ..1024 => write!(f, "{} bytes", self.0),
            1024..0x10_0000 => write!(f, "{:.1} KiB", bytes / 1024.0),
            0x10_0000..0x4000_0000 => write!(f, "{:.1} MiB", bytes / 1048576.0),
            _ => write!(f, "{:.1} GiB", bytes / 1073741824.0),
        }
    }
}

/// A clock that does not notice the change of kernels.
mod clock {
    use std::time::{
        Duration,
        Instant, //
    };

    /// The reading of the clock.
    #[cfg(target_arch = "x86_64")]
    pub fn ticks() -> u64 {
        // SAFETY: Linux lets user space use the instruction unless a process forbids it itself.
        unsafe { std::arch::x86_64::_rdtsc() }
    }

    /// The reading of the clock.
    #[cfg(target_arch = "aarch64")]
    pub fn ticks() -> u64 {
        let ticks;

        // SAFETY: Linux lets user space read this register, and reading it changes nothing.
        unsafe { std::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack)) };
        ticks
    }

    /// The time between two readings, if the clock was not reset in between.
    pub fn seconds_between(from: u64, to: u64) -> Option<f64> {
        let (start, first) = (Instant::now(), ticks());
        std::thread::sleep(Duration::from_millis(20));
        let (elapsed, last) = (start.elapsed(), ticks());
        let rate = last.checked_sub(first)? as f64 / elapsed.as_secs_f64();

        Some(to.checked_sub(from)? as f64 / rate)
    }
}
