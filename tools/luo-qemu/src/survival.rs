// SPDX-License-Identifier: GPL-2.0

//! Whether a guest with a command line can live through an update of its host.
//!
//! A command line is refused if QEMU could not be started with it again, if it has RAM elsewhere than in the
//! memfd, or if a device has state outside of QEMU. QEMU itself refuses devices that it cannot
//! migrate, since it is started with `-only-migratable`; here is what it does not know of.

use crate::options::{
    self,
    Opt, //
};
use nix::sys::statfs::{
    statfs,
    TMPFS_MAGIC, //
};
use std::{
    fmt,
    path::{
        Path,
        PathBuf, //
    },
};

/// What is wrong with a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The option that is at fault.
    pub option: String,
    /// Why, and what to do instead.
    pub why: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}' cannot survive an update: {}",
            self.option, self.why
        )
    }
}

/// Options that are refused whatever their argument is.
const OPTIONS: &[(&str, &str)] = &[
    (
        "mem-path",
        "luo-qemu makes the RAM itself; leave it out, or say --huge-pages",
    ),
    (
        "incoming",
        "luo-qemu loads the guest itself; leave it out, or use `luo-qemu resume'",
    ),
    (
        "loadvm",
        "the guest would be loaded from the snapshot again; load it by the monitor",
    ),
    ("daemonize", "luo-qemu has to see QEMU end; leave it out"),
    (
        "snapshot",
        "what the guest writes would be in a temporary file, which is lost",
    ),
    (
        "readconfig",
        "options in a file are not checked; write them on the command line",
    ),
    (
        "virtfs",
        "a shared folder blocks migration; use virtio-blk or the network",
    ),
    (
        "fsdev",
        "a shared folder blocks migration; use virtio-blk or the network",
    ),
    (
        "tpmdev",
        "a TPM is outside of QEMU, and its state would be lost",
    ),
    ("add-fd", "the descriptor is not there in the next kernel"),
    (
        "chroot",
        "QEMU opens its RAM and state by /proc, which it would not find",
    ),
    (
        "runas",
        "QEMU opens its state by /proc, which only the user that it was started as may",
    ),
    ("xen-attach", "RAM of Xen is not in the memfd"),
];

/// Devices that are refused: the beginning of their names.
const DEVICES: &[(&str, &str)] = &[
    (
        "virtio-balloon",
        "a balloon punches holes, which a preserved file refuses; leave it out",
    ),
    (
        "virtio-mem",
        "plugged RAM is not in the memfd; give the guest all its RAM by --memory",
    ),
    ("virtio-pmem", "its memory is not in the memfd"),
    (
        "pc-dimm",
        "plugged RAM is not in the memfd; give the guest all its RAM by --memory",
    ),
    ("nvdimm", "its memory is not in the memfd"),
    ("cxl-", "its memory is not in the memfd"),
    (
        "ivshmem",
        "memory that is shared with others is not preserved",
    ),
    (
        "vhost-",
        "its state is in the kernel or in another process; use the virtio device of QEMU",
    ),
    (
        "vfio-",
        "a passed-through device has state in the kernel, which is not preserved yet",
    ),
    ("usb-host", "a passed-through device is reset with its host"),
    ("usb-mtp", "it blocks migration"),
    (
        "virtio-9p",
        "a shared folder blocks migration; use virtio-blk or the network",
    ),
    (
        "virtio-gpu-gl",
        "its state is in the graphics driver of the host",
    ),
    (
        "virtio-vga-gl",
        "its state is in the graphics driver of the host",
    ),
    (
        "virtio-gpu-rutabaga",
        "its state is in the graphics driver of the host",
    ),
    ("nvme", "QEMU cannot migrate it; use virtio-blk"),
    (
        "tpm-",
        "a TPM is outside of QEMU, and its state would be lost",
    ),
];

/// Objects that are refused.
const OBJECTS: &[(&str, &str)] = &[
    (
        "memory-backend-",
        "luo-qemu makes the RAM itself; leave it out",
    ),
    ("sev-", "encrypted memory cannot be preserved"),
    ("tdx-", "encrypted memory cannot be preserved"),
    ("x-vfio-user-server", "its device is another process's"),
];

/// Formats of disks that block migration.
const FORMATS: &[&str] = &[
    "vvfat",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "parallels",
    "bochs",
    "cloop",
    "dmg",
];

/// Keys of `-netdev`, `-nic` and `-net` that name descriptors.
const DESCRIPTORS: &[&str] = &["fd", "fds", "vhostfd", "vhostfds", "sock-fd", "addr.str"];

/// Options whose argument is a file that QEMU opens.
const FILES: &[&str] = &[
    "", "hda", "hdb", "hdc", "hdd", "cdrom", "fda", "fdb", "mtdblock", "sd", "pflash", "kernel",
    "initrd", "dtb", "bios", "shim",
];

/// Looks through the arguments of QEMU. What is refused, in the order of the arguments.
pub fn refusals(arguments: &[String]) -> Vec<Refusal> {
    let options = options::parse(arguments);
    let mut found = Vec::new();

    for option in &options {
        let mut refuse = |why: &str| {
            found.push(Refusal {
                option: option.text(),
                why: why.to_owned(),
            });
        };
        if let Some((_, why)) = OPTIONS.iter().find(|(name, _)| *name == option.name) {
            refuse(why);
            continue;
        }
        if let Some(why) = broken_json(option) {
            refuse(&why);
            continue;
        }
        let named = |list: &[(&str, &'static str)], kind: &str| {
            let found = list.iter().find(|(begin, _)| kind.starts_with(begin));
            found.map(|(_, why)| *why)
        };
        match option.name.as_str() {
            "device" => {
                if let Some(why) = named(DEVICES, &option.kind(&["driver"])) {
                    refuse(why);
                } else if option.is_on("free-page-reporting") {
                    refuse("it punches holes, which a preserved file refuses");
                } else if option.is_on("blob") {
                    refuse("its state is in the graphics driver of the host");
                }
            }
            "object" => {
                if let Some(why) = named(OBJECTS, &option.kind(&["qom-type"])) {
                    refuse(why);
                }
            }
            "machine" | "M" => machine(option, &mut refuse),
            "m" => memory(option, &mut refuse),
            "numa" if option.value("memdev").is_some() || option.value("mem").is_some() => {
                refuse("RAM of several nodes is not in one memfd; give the guest one node");
            }
            "cpu" => {
                let words = option.argument.split(',');
                let mut words = words.map(|word| word.trim_start_matches('+'));
                if option.is_on("invtsc") || words.any(|word| word == "invtsc") {
                    refuse("QEMU cannot migrate a guest with invtsc");
                }
            }
            "netdev" | "nic" | "net" => network(option, &mut refuse),
            "chardev" => {
                let kind = option.kind(&["backend", "driver"]);
                if option.value("fd").is_some() {
                    refuse("the descriptor is not there in the next kernel");
                } else if kind == "vhost-user" {
                    refuse("its state is in another process");
                } else if kind == "socket" && waits(option) {
                    refuse(
                        "QEMU would wait for a client before it continues the guest; add wait=off",
                    );
                }
            }
            "serial" | "parallel" | "monitor" | "qmp" | "qmp-pretty" => {
                let is_socket = ["unix:", "tcp:", "telnet:", "websocket:"]
                    .iter()
                    .any(|begin| option.argument.starts_with(begin));
                if is_socket && waits(option) {
                    refuse(
                        "QEMU would wait for a client before it continues the guest; add wait=off",
                    );
                }
            }
            "run-with" => {
                for key in ["chroot", "user"] {
                    if option.value(key).is_some() {
                        refuse("QEMU opens its RAM and state by /proc, which it would not find");
                    }
                }
            }
            "drive" | "blockdev" => disk(option, &mut refuse),
            _ => {}
        }
        for file in files(option) {
            if is_volatile(&file) {
                refuse(&format!(
                    "{} is in memory (tmpfs), which the update empties; put it on a disk",
                    file.display()
                ));
            }
        }
    }
    found
}

fn broken_json(option: &Opt) -> Option<String> {
    let is_json = option.argument.trim_start().starts_with('{');
    (is_json && option.pairs().is_empty()).then(|| "its JSON cannot be read".to_owned())
}

fn machine(option: &Opt, refuse: &mut impl FnMut(&str)) {
    if option.value("memory-backend").is_some() {
        refuse("luo-qemu makes the RAM itself; leave memory-backend out");
    }
    for key in ["confidential-guest-support", "memory-encryption"] {
        if option.value(key).is_some() {
            refuse("encrypted memory cannot be preserved");
        }
    }
    if option.kind(&["type"]).starts_with("xen") {
        refuse("RAM of Xen is not in the memfd");
    }
}

fn memory(option: &Opt, refuse: &mut impl FnMut(&str)) {
    if option.value("maxmem").is_some() || option.value("slots").is_some() {
        refuse("plugged RAM is not in the memfd; leave maxmem and slots out");
    }
    if options::size(&option.kind(&["size"])).is_none() {
        refuse("this is no size of RAM: a number with M or G, in whole pages");
    }
}

fn network(option: &Opt, refuse: &mut impl FnMut(&str)) {
    let kind = option.kind(&["type"]);

    if option.is_on("vhost") || kind.starts_with("vhost-") {
        refuse("vhost has its state in the kernel or in another process; use vhost=off");
    } else if DESCRIPTORS.iter().any(|key| option.value(key).is_some()) {
        refuse("the descriptor is not there in the next kernel; name the device by ifname=");
    } else if kind == "tap" && option.value("ifname").is_none() {
        refuse(
            "the tap device would have another name in the next kernel; give it one by ifname=, and have \
             the host set it up at boot",
        );
    }
}

/// Whether a socket is a server that waits for its first client.
fn waits(option: &Opt) -> bool {
    option.is_on("server") && option.value("wait").is_none_or(|_| option.is_on("wait"))
}

fn disk(option: &Opt, refuse: &mut impl FnMut(&str)) {
    if option.is_on("snapshot") {
        refuse("what the guest writes would be in a temporary file, which is lost");
    }
    for key in ["driver", "format", "file.driver", ""] {
        let value = option.value(key).unwrap_or_default();
        if FORMATS.contains(&value.as_str()) {
            refuse("disks of this format block migration; use raw or qcow2");
        }
    }
    let file = option.value("file").or(option.value("filename"));
    let file = file.unwrap_or_default();
    if file.starts_with("fat:") {
        refuse("a folder as a disk blocks migration; use raw or qcow2");
    } else if file.starts_with("/dev/fdset/") || file.starts_with("/proc/self/fd/") {
        refuse("the descriptor is not there in the next kernel");
    }
}

/// The files that QEMU opens because of an option.
fn files(option: &Opt) -> Vec<PathBuf> {
    if FILES.contains(&option.name.as_str()) {
        return vec![option.argument.clone().into()];
    }
    let keys: &[&str] = match option.name.as_str() {
        "drive" => &["file"],
        "blockdev" => &["filename", "file.filename"],
        "device" => &["romfile"],
        _ => &[],
    };
    let values = keys.iter().filter_map(|key| option.value(key));
    values.map(PathBuf::from).collect()
}

/// Whether a file is in a file system that the update empties.
fn is_volatile(file: &Path) -> bool {
    statfs(file).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> Vec<Refusal> {
        refusals(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn good_ones() {
        for line in [
            "-name vm -nodefaults -display none -machine q35 -accel kvm -cpu host -smp 2 -m 256",
            "-M pc,hpet=off -m size=1G -nographic -kernel /boot/vmlinuz -append console=ttyS0",
            "-machine microvm -m 512M -serial stdio",
            "-m 1G -drive if=virtio,format=qcow2,file=/var/lib/vm/disk.qcow2",
            "-m 1G -blockdev {\"driver\":\"qcow2\",\"node-name\":\"d\",\"file\":{\"driver\":\"file\",\"filename\":\"/x\"}}",
            "-m 1G -netdev tap,id=n,ifname=vm0,script=no -device virtio-net-pci,netdev=n",
            "-m 1G -netdev user,id=n -device {\"driver\":\"virtio-net-pci\",\"netdev\":\"n\"}",
            "-m 1G -nic bridge,br=br0",
            "-m 1G -monitor unix:/run/m,server=on,wait=off -chardev socket,id=c,path=/run/c,server=on,wait=off",
            "-m 1G -chardev socket,id=c,path=/run/c",
            "-m 1G -object rng-random,id=r,filename=/dev/urandom -device virtio-rng-pci,rng=r",
            "-m 1G -smp 4 -numa node,cpus=0-3 -S",
            "-m 1G -vga std -cpu max,invtsc=off",
        ] {
            assert_eq!(refused(line), [], "{line}");
        }
    }

    #[test]
    fn bad_ones() {
        for (line, option) in [
            (
                "-m 1G -device virtio-balloon-pci",
                "-device virtio-balloon-pci",
            ),
            (
                "-device virtio-balloon,free-page-reporting=on",
                "-device virtio-balloon,free-page-reporting=on",
            ),
            (
                "-device {\"driver\":\"virtio-balloon-pci\",\"id\":\"b\"}",
                "-device {\"driver\":\"virtio-balloon-pci\",\"id\":\"b\"}",
            ),
            (
                "-device id=b,driver=virtio-balloon-ccw",
                "-device id=b,driver=virtio-balloon-ccw",
            ),
            (
                "--device vhost-vsock-pci,guest-cid=3",
                "-device vhost-vsock-pci,guest-cid=3",
            ),
            (
                "-device vhost-user-fs-pci,chardev=c",
                "-device vhost-user-fs-pci,chardev=c",
            ),
            (
                "-device vfio-pci,host=01:00.0",
                "-device vfio-pci,host=01:00.0",
            ),
            (
                "-device nvme,drive=d,serial=1",
                "-device nvme,drive=d,serial=1",
            ),
            (
                "-device ivshmem-plain,memdev=x",
                "-device ivshmem-plain,memdev=x",
            ),
            ("-device pc-dimm,memdev=x", "-device pc-dimm,memdev=x"),
            (
                "-device virtio-gpu-pci,blob=true",
                "-device virtio-gpu-pci,blob=true",
            ),
            ("-device usb-host,hostbus=1", "-device usb-host,hostbus=1"),
            (
                "-object memory-backend-ram,id=r,size=1G",
                "-object memory-backend-ram,id=r,size=1G",
            ),
            (
                "-object {\"qom-type\":\"memory-backend-memfd\",\"id\":\"r\"}",
                "-object {\"qom-type\":\"memory-backend-memfd\",\"id\":\"r\"}",
            ),
            ("-object sev-guest,id=s", "-object sev-guest,id=s"),
            (
                "-machine q35,memory-backend=ram",
                "-machine q35,memory-backend=ram",
            ),
            (
                "-M q35,confidential-guest-support=s",
                "-M q35,confidential-guest-support=s",
            ),
            ("-m 1G,slots=4,maxmem=8G", "-m 1G,slots=4,maxmem=8G"),
            ("-m nonsense", "-m nonsense"),
            ("-mem-path /dev/hugepages", "-mem-path /dev/hugepages"),
            ("-numa node,memdev=r", "-numa node,memdev=r"),
            ("-cpu host,+invtsc", "-cpu host,+invtsc"),
            ("-cpu host,invtsc=on", "-cpu host,invtsc=on"),
            ("-netdev tap,id=n", "-netdev tap,id=n"),
            (
                "-netdev tap,id=n,ifname=a,vhost=on",
                "-netdev tap,id=n,ifname=a,vhost=on",
            ),
            ("-netdev tap,id=n,fd=7", "-netdev tap,id=n,fd=7"),
            ("-nic tap", "-nic tap"),
            (
                "-netdev vhost-user,id=n,chardev=c",
                "-netdev vhost-user,id=n,chardev=c",
            ),
            (
                "-netdev vhost-vdpa,id=n,vhostdev=/dev/v",
                "-netdev vhost-vdpa,id=n,vhostdev=/dev/v",
            ),
            (
                "-chardev socket,id=c,path=/run/c,server=on",
                "-chardev socket,id=c,path=/run/c,server=on",
            ),
            ("-chardev socket,id=c,fd=5", "-chardev socket,id=c,fd=5"),
            ("-qmp unix:/run/q,server", "-qmp unix:/run/q,server"),
            (
                "-serial tcp::4444,server=on,wait=on",
                "-serial tcp::4444,server=on,wait=on",
            ),
            ("-drive file=fat:/srv", "-drive file=fat:/srv"),
            ("-drive file=/x,format=vmdk", "-drive file=/x,format=vmdk"),
            ("-drive file=/x,snapshot=on", "-drive file=/x,snapshot=on"),
            ("-drive file=/dev/fdset/1", "-drive file=/dev/fdset/1"),
            (
                "-blockdev driver=vvfat,node-name=d,dir=/srv",
                "-blockdev driver=vvfat,node-name=d,dir=/srv",
            ),
            ("-snapshot", "-snapshot"),
            ("-incoming defer", "-incoming defer"),
            ("-loadvm a", "-loadvm a"),
            ("-daemonize", "-daemonize"),
            ("-readconfig /etc/vm.cfg", "-readconfig /etc/vm.cfg"),
            (
                "-virtfs local,path=/srv,mount_tag=a",
                "-virtfs local,path=/srv,mount_tag=a",
            ),
            (
                "-tpmdev emulator,id=t,chardev=c",
                "-tpmdev emulator,id=t,chardev=c",
            ),
            ("-runas nobody", "-runas nobody"),
            ("-run-with user=nobody", "-run-with user=nobody"),
            ("-device {broken", "-device {broken"),
        ] {
            let found = refused(line);
            assert_eq!(found.len(), 1, "{line}: {found:?}");
            assert_eq!(found[0].option, option);
            assert!(!found[0].why.contains('\n'));
        }
    }

    #[test]
    fn each_fault_is_told() {
        let found = refused("-device virtio-balloon-pci -m 1G -netdev tap,id=n -snapshot");
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn an_argument_is_no_option() {
        assert_eq!(refused("-append -snapshot -m 1G"), []);
        assert_eq!(refused("-name -daemonize -m 1G"), []);
        // And what follows a flag is one.
        assert_eq!(refused("-nographic -snapshot").len(), 1);
        assert_eq!(refused("-an-option-of-the-future -snapshot").len(), 1);
    }

    #[test]
    fn disks_in_memory() {
        // /dev/shm is a tmpfs wherever there is one.
        let Ok(file) = tempfile::NamedTempFile::new_in("/dev/shm") else {
            return;
        };
        let path = file.path().display();
        assert_eq!(refused(&format!("-m 1G -hda {path}")).len(), 1);
        assert_eq!(refused(&format!("-m 1G {path}")).len(), 1);
        assert_eq!(
            refused(&format!("-m 1G -drive file={path},format=raw")).len(),
            1
        );
        assert_eq!(refused(&format!("-m 1G -kernel {path}")).len(), 1);
    }
}
