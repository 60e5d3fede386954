// SPDX-License-Identifier: GPL-2.0

//! What debugfs shows of a handover, before and after the kexec.

use super::{
    retrieve,
    three_before,
    three_content, //
};
use crate::{
    harness::{
        ensure,
        ensure_eq,
        Outcome,
        Stage, //
    },
    sys, //
};
use liveupdate::Device;
use std::{
    fs::{
        self,
        File, //
    },
    io::Read,
    path::{
        Path,
        PathBuf, //
    }, //
};

/// What the kernel shows of the handover can be read, before and after.
pub fn shown(_: &mut Stage) -> Outcome {
    let mut folders = vec![PathBuf::from("/sys/kernel/debug")];

    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry?.path();
            let name = path.to_string_lossy();
            let meta = fs::symlink_metadata(&path)?;
            if meta.is_dir() {
                // Elsewhere in debugfs reading may have effects.
                if folder != Path::new("/sys/kernel/debug")
                    || ["kho", "luo", "liveupdate"]
                        .iter()
                        .any(|it| name.contains(it))
                {
                    folders.push(path);
                }
            } else if meta.is_file() && folder != Path::new("/sys/kernel/debug") {
                let mut bytes = Vec::new();
                // Whether there is anything in it is not the question.
                let _ =
                    File::open(&path).and_then(|file| file.take(1 << 20).read_to_end(&mut bytes));
            }
        }
    }
    Ok(())
}

/// As [`three_before`], with a look at what the kernel shows.
pub fn shown_before(stage: &mut Stage) -> Outcome {
    three_before(stage)?;
    shown(stage)
}

/// As [`three_after`](super::three_after), with a look at what the kernel shows at every step.
pub fn shown_after(stage: &mut Stage) -> Outcome {
    // Memory that is given back must not be shown as the old kernel's any more.
    let root = || fs::read("/sys/kernel/debug/kho/in/sub_fdts/LUO");
    let first = root()?;
    shown(stage)?;
    let session = Device::open()?.retrieve_session(stage.name)?;
    shown(stage)?;
    let file = retrieve(&session, 7)?;
    shown(stage)?;
    session.finish()?;
    drop(session);
    shown(stage)?;
    // Whatever was freed is somebody else's now.
    drop(sys::memfd_of("m", &sys::pattern(1, 16 << 20))?);
    ensure!(root()? == first);
    ensure_eq!(sys::content(&file)?, three_content(7));
    Ok(())
}
