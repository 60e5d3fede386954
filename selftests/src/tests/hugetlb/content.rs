// SPDX-License-Identifier: GPL-2.0

//! What is in a memfd of huge pages: content, holes, size and position.

use super::{
    check,
    fill,
    memfd_of_holes,
    Pool,
    HUGE, //
};
use crate::{
    harness::{
        ensure_eq,
        Outcome,
        Stage, //
    },
    sys::{
        self,
        SharedWords, //
    }, //
};
use liveupdate::Device;
use std::{
    fs::File,
    io::{
        Seek,
        SeekFrom, //
    }, //
};

/// Which pages are there, of how many.
const SHAPES: [(usize, &[usize]); 5] = [
    (0, &[]),
    (1, &[0]),
    (3, &[]),
    (4, &[0, 1, 3]),
    (40, &[2, 39]),
];

/// Content, holes, size and position.
pub fn content_before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    Pool::small().resize(8)?;
    for (token, (pages, there)) in (0..).zip(SHAPES) {
        let mut file = memfd_of_holes("huge", pages)?;
        if !there.is_empty() {
            fill(
                &mut SharedWords::unreserved(&file, pages * HUGE)?,
                token,
                there,
            );
        }
        file.seek(SeekFrom::Start(token * 12_345))?;
        session.preserve(&file, token)?;
    }
    stage.keep(session);
    Ok(())
}

/// See [`content_before`].
pub fn content_after(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    for (token, (pages, there)) in (0..).zip(SHAPES) {
        let file: File = session.retrieve(token)?.into();
        ensure_eq!(file.metadata()?.len(), (pages * HUGE) as u64);
        ensure_eq!(sys::position(&file)?, token * 12_345);
        ensure_eq!(sys::link_of(&file)?, "/memfd:huge (deleted)");
        check(&file, token, there)?;
    }
    session.finish()?;
    Ok(())
}

/// The same where the kernel frees the parts of its memory map that huge pages do not need.
pub fn vmemmap_after(stage: &mut Stage) -> Outcome {
    content_after(stage)?;
    // All pages go to the page allocator, which has to fill the gaps in the map.
    Pool::small().expect(0, 0, 0, 0)
}
