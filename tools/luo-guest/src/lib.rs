// SPDX-License-Identifier: GPL-2.0

//! Life as the first process of a bare initramfs.

pub mod initramfs;

use liveupdate::{
    Context,
    Error,
    Result, //
};
use nix::{
    errno::Errno,
    mount::{
        mount,
        MsFlags, //
    },
    sys::{
        reboot::{
            reboot,
            RebootMode, //
        },
        termios::tcdrain, //
    },
    unistd, //
};
use std::{
    fs::{
        self,
        File,
        OpenOptions, //
    },
    io::{
        self,
        Read,
        Write, //
    },
    os::unix::fs::OpenOptionsExt,
    path::Path, //
};

/// The file systems that every process expects.
const MOUNTS: [(&str, &str); 4] = [
    ("proc", "/proc"),
    ("devtmpfs", "/dev"),
    ("sysfs", "/sys"),
    ("debugfs", "/sys/kernel/debug"),
];

/// Mounts `/proc`, `/dev`, `/sys` and, if the kernel has it, debugfs.
///
/// What is there already is left alone.
pub fn mount_all() -> Result {
    for (fs_type, target) in MOUNTS {
        // In sysfs there is nothing to make; elsewhere a directory that is missing shows below.
        let _ = fs::create_dir(target);
        match mount(
            Some(fs_type),
            target,
            Some(fs_type),
            MsFlags::empty(),
            None::<&str>,
        ) {
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(_) if fs_type == "debugfs" => {}
            Err(errno) => return Err(Error::new(format!("mount {target}"), errno)),
        }
    }
    Ok(())
}

/// The path of the second serial port, as the drivers of the machines that QEMU offers call it.
const REPORT: &str = if cfg!(target_arch = "aarch64") {
    "/dev/ttyAMA1"
} else {
    "/dev/ttyS1"
};

/// The second serial port, where a machine's owner reads what is meant for him.
///
/// The first one is the console, where the kernel has its say. If there is no second port the
/// console must do.
pub fn report_port() -> Result<Port> {
    let open = |path| OpenOptions::new().write(true).open(path);

    open(REPORT)
        .and_then(|port| {
            // A port without hardware may open, but has no settings.
            make_raw(&port)?;
            Ok(port)
        })
        .or_else(|_| open("/dev/console"))
        .map(Port)
        .context(|| "open a terminal")
}

/// A serial port, to be flushed before a reboot or a kexec: these do not wait for what its driver has
/// not sent yet.
#[derive(Debug)]
pub struct Port(File);

impl Write for Port {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    /// Waits until all is sent.
    fn flush(&mut self) -> io::Result<()> {
        Ok(tcdrain(&self.0)?)
    }
}

/// Makes a terminal pass on bytes as they are.
fn make_raw(port: &File) -> io::Result<()> {
    use nix::sys::termios;

    let mut settings = termios::tcgetattr(port)?;
    termios::cfmakeraw(&mut settings);
    termios::tcsetattr(port, termios::SetArg::TCSANOW, &settings)?;
    Ok(())
}

/// A message of the kernel.
#[derive(Clone, Debug)]
pub struct LogRecord {
    /// Its number; numbers grow.
    pub sequence: u64,
    /// The message.
    pub text: String,
}

/// The messages of the kernel from number `first` on, as far as it still has them.
pub fn kernel_log(first: u64) -> Result<Vec<LogRecord>> {
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .context(|| "open the kernel log")?;
    let mut record = [0; 8192];
    let mut records = Vec::new();

    loop {
        match log.read(&mut record) {
            Ok(len) => records.extend(
                LogRecord::parse(&String::from_utf8_lossy(&record[..len]))
                    .filter(|record| record.sequence >= first),
            ),
            // Overwritten before it was read: goes on with the next.
            Err(err) if err.raw_os_error() == Some(libc::EPIPE) => {}
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(records),
            Err(err) => return Err(err).context(|| "read the kernel log"),
        }
    }
}

impl LogRecord {
    /// Takes apart `priority,sequence,time,flags;text`; lines of further data may follow.
    fn parse(record: &str) -> Option<Self> {
        let (prefix, text) = record.split_once(';')?;

        Some(Self {
            sequence: prefix.split(',').nth(1)?.parse().ok()?,
            text: text.lines().next()?.to_owned(),
        })
    }
}

/// How many live updates led to this kernel, as it says in its log; 0 after a cold boot.
pub fn live_update_number() -> Result<u64> {
    let number = kernel_log(0)?
        .iter()
        .find_map(|record| update_number_in(&record.text));

    Ok(number.unwrap_or(0))
}

/// The number in a message about the incoming sessions; one about the outgoing ones has that of the
/// next live update.
fn update_number_in(text: &str) -> Option<u64> {
    let (before, number) = text.split_once("liveupdate number: ")?;
    let end = number.find(|c: char| !c.is_ascii_digit());

    match before.contains("handing over") {
        true => None,
        false => number[..end.unwrap_or(number.len())].parse().ok(),
    }
}

/// Writes out what is buffered and switches the machine off.
///
/// A kernel that cannot do that would halt instead: there the machine is reset, which ends a
/// virtual one that was told not to reboot.
pub fn power_off() -> ! {
    let mode = match Path::new("/sys/firmware/acpi").exists() {
        true => RebootMode::RB_POWER_OFF,
        false => RebootMode::RB_AUTOBOOT,
    };

    unistd::sync();
    // What was said on the console, if that is a terminal.
    let _ = tcdrain(io::stderr());
    let _ = reboot(mode);
    // The first process must not end, or the kernel panics. Nothing better is left.
    std::process::exit(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn update_numbers() {
        let of = update_number_in;

        assert_eq!(
            of("luo: Retrieved live update data, liveupdate number: 12"),
            Some(12)
        );
        assert_eq!(
            of("luo: incoming: liveupdate number: 3: 1 sessions"),
            Some(3)
        );
        assert_eq!(
            of("luo: handing over: liveupdate number: 4: 1 sessions"),
            None
        );
        assert_eq!(of("luo: sessions"), None);
    }

    #[test]
    fn log_records() {
        let record = LogRecord::parse("6,42,1234,-;some; text\n KEY=value\n").unwrap();

        assert_eq!(record.sequence, 42);
        assert_eq!(record.text, "some; text");
        assert!(LogRecord::parse("garbage").is_none());
    }
}
