// SPDX-License-Identifier: GPL-2.0

//! A running QEMU whose RAM is a memfd: started, saved, loaded, stopped.
//!
//! QEMU inherits three descriptors of fixed numbers, so that its command line is the same in each
//! kernel: the RAM, its monitor, and the file that the state is written to and read from. It opens RAM
//! and state by `/proc/self/fd`. RAM that is a shared mapping of a *named* file is left out of
//! the state (`x-ignore-shared`); a backend of type memfd would be copied into it.

use crate::{
    qmp::Qmp,
    ram::Ram,
    Outcome, //
};
use command_fds::{
    CommandFdExt,
    FdMapping, //
};
use nix::sys::memfd::{
    memfd_create,
    MFdFlags, //
};
use serde_json::json;
use std::{
    fs::{
        self,
        File, //
    },
    os::{
        fd::{
            AsFd,
            BorrowedFd,
            OwnedFd, //
        },
        unix::{
            fs::MetadataExt,
            net::UnixStream, //
        },
    },
    path::Path,
    process::{
        Child,
        Command,
        ExitStatus, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

/// The descriptors that QEMU inherits.
const RAM_FD: i32 = 3;
const QMP_FD: i32 = 4;
const STATE_FD: i32 = 5;

/// How long QEMU may take to start, and to write or read a state. An emulated host is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a kernel with transparent huge pages says how large they are, in bytes.
const HUGE_PAGE_SIZE: &str = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size";

/// What QEMU is started with.
#[derive(Debug)]
pub struct Files {
    /// The guest's RAM.
    pub ram: File,
    /// The state of its devices.
    pub state: File,
}

impl Files {
    /// New RAM, and an empty state.
    pub fn new(name: &str, ram: Ram) -> Outcome<Self> {
        let state = format!("luo-qemu:{name}:state");

        Ok(Self {
            ram: ram.make(name)?,
            state: File::from(memfd_create(state.as_str(), MFdFlags::MFD_CLOEXEC)?),
        })
    }
}

/// A running QEMU.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    qmp: Qmp,
    files: Files,
    memory: u64,
}

impl Machine {
    /// Starts QEMU. With a `machine` type it waits for a state to be loaded, as that machine.
    pub fn start(
        command: &[String],
        directory: &Path,
        memory: u64,
        files: Files,
        machine: Option<&str>,
    ) -> Outcome<Self> {
        let [program, arguments @ ..] = command else {
            return Err("there is no command to run".into());
        };
        let (ours, theirs) = UnixStream::pair()?;
        let mapping = |fd: &dyn AsFd, child_fd| -> Outcome<FdMapping> {
            Ok(FdMapping {
                parent_fd: fd.as_fd().try_clone_to_owned()?,
                child_fd,
            })
        };
        let mut qemu = Command::new(program);
        qemu.args(arguments)
            .args(own_arguments(memory, ram_alignment(&files.ram)?, machine))
            .current_dir(directory)
            .fd_mappings(vec![
                mapping(&files.ram, RAM_FD)?,
                mapping(&OwnedFd::from(theirs), QMP_FD)?,
                mapping(&files.state, STATE_FD)?,
            ])?;
        let child = qemu
            .spawn()
            .map_err(|err| format!("cannot start {program}: {err}"))?;
        // With it goes our copy of QEMU's end of the monitor, so that the end of QEMU is seen.
        drop(qemu);

        let mut child = Unfinished(Some(child));
        let mut qmp = Qmp::new(ours, PATIENCE)?;
        qmp.execute(
            "migrate-set-capabilities",
            &json!({"capabilities": [
                {"capability": "events", "state": true},
                {"capability": "x-ignore-shared", "state": true},
            ]}),
        )?;
        let child = child.0.take().ok_or("QEMU is gone")?;
        Ok(Self {
            child,
            qmp,
            files,
            memory,
        })
    }

    /// RAM and state.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The machine type without aliases.
    pub fn kind(&mut self) -> Outcome<String> {
        let found = self
            .qmp
            .execute("qom-get", &json!({"path": "/machine", "property": "type"}))?;
        let found = found.as_str().unwrap_or_default();
        Ok(found.strip_suffix("-machine").unwrap_or(found).to_owned())
    }

    /// Stops the guest and writes its state. Returns whether it ran before.
    ///
    /// If that fails, the guest goes on.
    pub fn save(&mut self) -> Outcome<bool> {
        let status = self.qmp.execute("query-status", &json!({}))?;
        let running = status["running"] == true;

        let saved = self.write_state();
        if saved.is_err() && running {
            self.go_on()?;
        }
        saved.map(|()| running)
    }

    fn write_state(&mut self) -> Outcome {
        self.qmp.execute("stop", &json!({}))?;
        // Of an update that was aborted a moment ago the file may still be preserved.
        let end = Instant::now() + Duration::from_secs(5);
        while let Err(err) = self.files.state.set_len(0) {
            if Instant::now() > end {
                return Err(format!("cannot empty the file for the state: {err}").into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        // Those of the migration that this machine came by.
        self.qmp.drain()?;
        self.qmp.execute("migrate", &json!({"uri": state_uri()}))?;
        self.migrated("the state cannot be saved")?;

        let info = self.qmp.execute("query-migrate", &json!({}))?;
        let total = info["ram"]["total"]
            .as_u64()
            .ok_or("QEMU does not say what it saved")?;
        // Also a small guest with much other memory has as much, as with the two flash banks of 64 MiB
        // of arm64's `virt`.
        if total >= self.memory && total > self.other_memory()? {
            return Err("QEMU would copy the guest's RAM instead of leaving it where it is".into());
        }
        Ok(())
    }

    /// How much memory the guest has beside its RAM, in bytes.
    fn other_memory(&mut self) -> Outcome<u64> {
        let blocks = self.qmp.execute(
            "human-monitor-command",
            &json!({"command-line": "info ramblock"}),
        )?;
        blocks
            .as_str()
            .and_then(all_memory)
            .and_then(|all| all.checked_sub(self.memory))
            .ok_or_else(|| format!("QEMU does not say what memory the guest has: {blocks}").into())
    }

    /// Loads the state.
    pub fn load(&mut self) -> Outcome {
        self.qmp
            .execute("migrate-incoming", &json!({"uri": state_uri()}))?;
        self.migrated("the state cannot be loaded")
    }

    /// Waits for the end of a migration.
    fn migrated(&mut self, what: &str) -> Outcome {
        let completed = self.qmp.wait(PATIENCE, |event| {
            let status = event["data"]["status"].as_str();
            match status.filter(|_| event["event"] == "MIGRATION") {
                Some("completed") => Some(true),
                Some("failed" | "cancelled") => Some(false),
                _ => None,
            }
        })?;
        if completed {
            return Ok(());
        }
        let info = self.qmp.execute("query-migrate", &json!({}))?;
        let why = info["error-desc"].as_str().unwrap_or("no reason given");
        Err(format!("{what}: {why}").into())
    }

    /// Lets the guest run.
    pub fn go_on(&mut self) -> Outcome {
        self.qmp.execute("cont", &json!({})).map(drop)
    }

    /// Asks the guest to shut down.
    pub fn power_down(&mut self) -> Outcome {
        self.qmp.execute("system_powerdown", &json!({})).map(drop)
    }

    /// Reads the events that have come, and drops them.
    pub fn drain(&mut self) -> Outcome {
        self.qmp.drain()
    }

    /// Whether QEMU has ended, and how.
    pub fn ended(&mut self) -> Outcome<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Ends QEMU, which has written everything that counts.
    pub fn quit(&mut self) -> Outcome<ExitStatus> {
        let _ = self.qmp.execute("quit", &json!({}));
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.child.kill()?;
        Ok(self.child.wait()?)
    }
}

impl AsFd for Machine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.qmp.as_fd()
    }
}

impl Drop for Machine {
    /// A guest that nobody looks after must not run beside the one that is started next.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A QEMU that is ended unless it is taken.
struct Unfinished(Option<Child>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn state_uri() -> String {
    format!("file:/proc/self/fd/{STATE_FD}")
}

/// The alignment of the RAM in QEMU's address space, in bytes.
///
/// By default QEMU aligns it to the pages of the file only. At such an address a fault cannot map a huge
/// page of shmem, and allocates small ones.
fn ram_alignment(ram: &File) -> Outcome<u64> {
    let huge = fs::read_to_string(HUGE_PAGE_SIZE).ok();
    Ok(alignment(ram.metadata()?.blksize(), huge.as_deref()))
}

/// The larger one of a file's page and the kernel's huge page; the former if there are no huge pages.
fn alignment(page: u64, huge: Option<&str>) -> u64 {
    huge.and_then(|size| size.trim().parse().ok())
        .filter(|size: &u64| size.is_power_of_two())
        .map_or(page, |size| size.max(page))
}

/// What is added to the operator's command line.
fn own_arguments(memory: u64, alignment: u64, machine: Option<&str>) -> Vec<String> {
    let mut words = vec![
        "-m".to_owned(),
        format!("{}k", memory >> 10),
        "-object".to_owned(),
        format!(
            "memory-backend-file,id=luo-ram,size={memory},align={alignment},\
             mem-path=/proc/self/fd/{RAM_FD},share=on"
        ),
        "-machine".to_owned(),
        "memory-backend=luo-ram".to_owned(),
        "-chardev".to_owned(),
        format!("socket,id=luo-qmp,fd={QMP_FD}"),
        "-qmp".to_owned(),
        "chardev:luo-qmp".to_owned(),
        "-only-migratable".to_owned(),
    ];
    if let Some(machine) = machine {
        let words_to_load = ["-machine", &format!("type={machine}"), "-incoming", "defer"];
        words.extend(words_to_load.map(str::to_owned));
    }
    words
}

/// The bytes in use of all memory that `info ramblock` lists.
fn all_memory(blocks: &str) -> Option<u64> {
    blocks
        .lines()
        .skip(1)
        .map(|line| {
            // An offset, what is in use, what may be, an address.
            let mut numbers = line
                .split_whitespace()
                .filter_map(|word| word.strip_prefix("0x"));
            u64::from_str_radix(numbers.nth(1)?, 16).ok()
        })
        .try_fold(0_u64, |sum, used| sum.checked_add(used?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU 10.0 says it of a machine `virt` with 128 MiB.
    const BLOCKS: &str = "\
              Block Name    PSize              Offset               Used              Total                HVA  RO\r
                 luo-ram    4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000 0x00007efda3fff000  rw\r
             virt.flash0    4 KiB  0x0000000008000000 0x0000000004000000 0x0000000004000000 0x00007efd97e00000  rw\r
             virt.flash1    4 KiB  0x000000000c000000 0x0000000004000000 0x0000000004000000 0x00007efd93c00000  rw\r
    /rom@etc/acpi/tables    4 KiB  0x0000000010000000 0x0000000000020000 0x0000000000200000 0x00007efdf2200000  ro\r
";

    #[test]
    fn ram_is_aligned_to_the_largest_page() {
        let huge = Some("2097152\n");

        assert_eq!(alignment(4096, huge), 2 << 20);
        assert_eq!(alignment(1 << 30, huge), 1 << 30);
        for none in [None, Some(""), Some("3"), Some("2M")] {
            assert_eq!(alignment(4096, none), 4096, "{none:?}");
        }
    }

    #[test]
    fn qemu_is_told_the_alignment_of_the_ram() {
        let ram = File::from(memfd_create("ram", MFdFlags::MFD_CLOEXEC).unwrap());
        let alignment = ram_alignment(&ram).unwrap();

        assert!(alignment.is_power_of_two() && alignment >= 4096);
        let words = own_arguments(64 << 20, alignment, None).join(" ");
        assert!(words.contains(&format!(",align={alignment},")), "{words}");
    }

    #[test]
    fn memory_is_added_up() {
        assert_eq!(all_memory(BLOCKS), Some((256 << 20) + (128 << 10)));
    }

    #[test]
    fn what_is_not_understood_is_no_memory() {
        for line in [
            "luo-ram",
            "luo-ram 4 KiB 0x0 0xg",
            "unknown command: 'info'",
        ] {
            assert_eq!(all_memory(&format!("{BLOCKS}{line}\n")), None, "{line}");
        }
        let most = "one 4 KiB 0x0 0xffffffffffffffff 0x0 0x0\n";
        assert_eq!(all_memory(&format!("{BLOCKS}{most}")), None);
    }
}
