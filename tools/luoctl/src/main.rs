// SPDX-License-Identifier: GPL-2.0

//! Live updates from the command line.
//!
//! The tool does what an agent does, step by step and for one file or a few: hold files in a
//! session, load and start the next kernel, take the files back there.

use clap::{
    Parser,
    Subcommand, //
};
use liveupdate::{
    kexec,
    status::Support,
    Context,
    Device,
    Error,
    Result,
    DEVICE_PATH, //
};
use nix::{
    errno::Errno,
    sys::{
        memfd::{
            memfd_create,
            MFdFlags, //
        },
        signal::{
            SigSet,
            Signal, //
        },
    },
};
use std::{
    fs::{
        self,
        File, //
    },
    io::{
        self,
        Seek,
        SeekFrom, //
    },
    os::fd::AsFd,
    path::{
        Path,
        PathBuf, //
    },
    process::ExitCode,
    str::FromStr, //
};

/// Carries files over a kexec by the Live Update Orchestrator.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    /// The device to talk to.
    #[arg(long, global = true, value_name = "PATH", default_value = DEVICE_PATH)]
    device: PathBuf,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say whether live updates work here and how many there have been.
    Status,

    /// Create a session, preserve copies of files in it and hold it until interrupted.
    ///
    /// A session lasts as long as a process holds it: leave this one running until the reboot.
    Hold {
        /// Name of the session, up to 63 bytes.
        session: String,
        /// What to preserve, and under which token.
        #[arg(value_name = "TOKEN=FILE", value_parser = TokenPath::from_str)]
        files: Vec<TokenPath>,
    },

    /// Retrieve a session after the reboot, write its files out and finish it.
    Retrieve {
        /// Name of the session.
        session: String,
        /// What to retrieve, and where to put it.
        #[arg(value_name = "TOKEN=FILE", value_parser = TokenPath::from_str)]
        files: Vec<TokenPath>,
    },

    /// Load the next kernel, and start it unless told otherwise.
    ///
    /// The reboot is immediate: stop services and sync file systems first.
    Kexec {
        /// The kernel image.
        #[arg(long, value_name = "FILE", required_unless_present = "unload")]
        kernel: Option<PathBuf>,
        /// The initramfs.
        #[arg(long, value_name = "FILE")]
        initrd: Option<PathBuf>,
        /// The kernel command line [default: the running kernel's]
        #[arg(long, value_name = "TEXT")]
        cmdline: Option<String>,
        /// Load only.
        #[arg(long)]
        load: bool,
        /// Take out what is loaded instead.
        #[arg(long, conflicts_with_all = ["kernel", "initrd", "cmdline", "load"])]
        unload: bool,
    },
}

/// A token and the path of the file that goes with it.
#[derive(Clone)]
struct TokenPath {
    token: u64,
    path: PathBuf,
}

impl FromStr for TokenPath {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (token, path) = text.split_once('=').ok_or("not of the form TOKEN=FILE")?;
        let number = match token.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => token.parse(),
        };

        Ok(Self {
            token: number.map_err(|err| format!("token '{token}': {err}"))?,
            path: path.into(),
        })
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("luoctl: {err}");
            if let Some(hint) = hint(&err, &arguments.command) {
                eprintln!("luoctl: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result {
    let device = || Device::open_at(&arguments.device);

    match &arguments.command {
        Command::Status => status(),
        Command::Hold { session, files } => hold(device()?, session, files),
        Command::Retrieve { session, files } => retrieve(&device()?, session, files),
        Command::Kexec { unload: true, .. } => kexec::unload(),
        Command::Kexec {
            kernel,
            initrd,
            cmdline,
            load,
            ..
        } => {
            let kernel = kernel.as_deref().expect("clap asks for it");
            load_kernel(kernel, initrd.as_deref(), cmdline.as_deref())?;
            match load {
                true => Ok(()),
                false => Err(kexec::jump()),
            }
        }
    }
}

/// What to do about an error that has one likely cause.
fn hint(err: &Error, command: &Command) -> Option<&'static str> {
    match (err.errno(), command) {
        (Errno::ENOENT, Command::Status) => Some("is the kernel booted with liveupdate=on?"),
        (Errno::EBUSY, _) => Some("only one agent at a time may hold the device or a file"),
        (Errno::ENOENT, Command::Retrieve { .. }) => {
            Some("was it preserved, and has nobody finished it yet?")
        }
        (Errno::ENOEXEC, Command::Kexec { .. }) => Some("is this a kernel of this architecture?"),
        _ => None,
    }
}

fn status() -> Result {
    match Support::read()? {
        Support::Absent => println!("live update: not there"),
        Support::Off => println!("live update: off"),
        Support::DeviceOnly => println!("live update: on"),
        Support::On(status) => println!("live update: {}, number {}", status.state, status.number),
    }
    Ok(())
}

fn hold(device: Device, name: &str, files: &[TokenPath]) -> Result {
    let session = device.create_session(name)?;

    // Others want it too, and a session does without.
    drop(device);
    println!("session '{name}' created");
    for TokenPath { token, path } in files {
        let what = || format!("copy {}", path.display());
        let label = path.file_name().unwrap_or_default();
        let memory = memfd_create(label, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING);
        let mut memory = File::from(memory.context(what)?);
        let bytes = File::open(path)
            .and_then(|mut file| io::copy(&mut file, &mut memory))
            .and_then(|bytes| memory.rewind().map(|()| bytes))
            .context(what)?;

        session.preserve(&memory, *token)?;
        println!("{bytes} bytes preserved under token {token:#x}");
    }

    println!("holding; interrupt to give up");
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals
        .thread_block()
        .and_then(|()| signals.wait())
        .context(|| "wait for a signal")?;
    println!("session '{name}' given up");
    Ok(())
}

fn retrieve(device: &Device, name: &str, files: &[TokenPath]) -> Result {
    let session = device.retrieve_session(name)?;

    println!("session '{name}' retrieved");
    for TokenPath { token, path } in files {
        let what = || format!("write {}", path.display());
        let mut memory = File::from(session.retrieve(*token)?);
        // Write the whole file, wherever its position is.
        let bytes = memory
            .seek(SeekFrom::Start(0))
            .and_then(|_| File::create(path))
            .and_then(|mut file| io::copy(&mut memory, &mut file))
            .context(what)?;

        println!(
            "{bytes} bytes of token {token:#x} written to {}",
            path.display()
        );
    }

    session.finish()?;
    println!("session '{name}' finished");
    Ok(())
}

fn load_kernel(kernel: &Path, initrd: Option<&Path>, cmdline: Option<&str>) -> Result {
    let open = |path: &Path| File::open(path).context(|| format!("open {}", path.display()));
    let kernel = open(kernel)?;
    let initrd = initrd.map(open).transpose()?;
    let cmdline = match cmdline {
        Some(cmdline) => cmdline.to_owned(),
        None => fs::read_to_string("/proc/cmdline")
            .context(|| "read /proc/cmdline")?
            .trim_end()
            .to_owned(),
    };

    kexec::load(kernel.as_fd(), initrd.as_ref().map(AsFd::as_fd), &cmdline)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn tokens() {
        let parse = |text: &str| TokenPath::from_str(text).map(|it| (it.token, it.path));

        assert_eq!(parse("7=a=b"), Ok((7, "a=b".into())));
        assert_eq!(parse("0xffffffffffffffff=x"), Ok((u64::MAX, "x".into())));
        assert!(parse("x").is_err());
        assert!(parse("-1=x").is_err());
        assert!(parse("18446744073709551616=x").is_err());
    }
}
