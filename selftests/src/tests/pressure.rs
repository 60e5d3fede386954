// SPDX-License-Identifier: GPL-2.0

//! Files that come back while the kernel looks everywhere for memory: caches are dropped, memory is
//! compacted, and there is little of it.

use crate::{
    agent::Agent,
    harness::{
        ensure_eq,
        Outcome,
        Stage, //
    },
    sys::{
        self,
        SharedWords,
        PAGE, //
    },
    tests::late::{
        on_first_processor,
        on_processor, //
    }, //
};
use liveupdate::Device;
use std::{
    fs::{
        self,
        File, //
    },
    os::unix::fs::MetadataExt,
    sync::atomic::Ordering, //
};

/// How many files there are.
const FILES: u64 = 256;
/// How many pages each has: a MiB.
const PAGES: usize = (1 << 20) / PAGE;
/// Of so many files, the content of one is looked at.
const LOOK: u64 = 8;

fn word(file: u64, page: usize) -> u64 {
    file * 1_000_003 + page as u64 * 7919 + 12_345
}

/// Many files of single pages.
pub fn before(stage: &mut Stage) -> Outcome {
    let session = Device::open()?.create_session(stage.name)?;

    for number in 0..FILES {
        let file = sys::memfd("m")?;
        file.set_len((PAGES * PAGE) as u64)?;
        for page in 0..PAGES {
            sys::write_at(
                &file,
                (page * PAGE) as u64,
                &word(number, page).to_ne_bytes(),
            )?;
        }
        session.preserve(&file, number)?;
    }
    stage.keep(session);
    Ok(())
}

/// Writes to a file of the kernel over and over, on a processor behind the first.
fn again_and_again(path: &'static str, value: &'static str, processor: usize) -> Outcome<Agent> {
    Agent::start(move || {
        on_processor(processor)?;
        loop {
            fs::write(path, value)?;
        }
    })
}

/// Takes a part of what memory is free, and gives it back, over and over.
fn need_memory() -> Outcome<Agent> {
    Agent::start(|| loop {
        let part = (sys::meminfo("MemAvailable")? << 10) / 4 * 3;
        let mut memory = vec![0_u8; part as usize];
        for byte in memory.iter_mut().step_by(PAGE) {
            *byte = 1;
        }
    })
}

/// Retrieves one file after the other. They are emptied at once: the less there is to be looked
/// through, the more often a disturber meets the page that is just being put into a file.
fn retrieve(stage: &Stage, disturbers: Vec<Agent>) -> Outcome {
    let session = Device::open()?.retrieve_session(stage.name)?;

    on_first_processor()?;
    for number in 0..FILES {
        let file = File::from(session.retrieve(number)?);
        let len = PAGES * PAGE;
        ensure_eq!(sys::extents(&file)?, [(0, len as i64)], "file {number}");
        if number % LOOK == 0 {
            let mapping = SharedWords::of(&file, len)?;
            for page in 0..PAGES {
                let found = mapping.word(page * PAGE).load(Ordering::Relaxed);
                ensure_eq!(found, word(number, page), "file {number} page {page}");
            }
        }
        // A page that is locked forever holds this up.
        file.set_len(0)?;
        ensure_eq!(file.metadata()?.blocks(), 0, "file {number}");
    }
    disturbers.into_iter().try_for_each(Agent::kill)?;
    Ok(session.finish()?)
}

const DROP: &str = "/proc/sys/vm/drop_caches";

/// The caches are dropped on all other processors.
pub fn dropped_after(stage: &mut Stage) -> Outcome {
    // Drops nothing, and has the kernel not tell each time.
    fs::write(DROP, "4")?;
    let disturbers = (0..3).map(|number| again_and_again(DROP, "1", number));
    let disturbers = disturbers.collect::<Outcome<_>>()?;

    retrieve(stage, disturbers)
}

/// All that there is at once.
pub fn all_after(stage: &mut Stage) -> Outcome {
    fs::write(DROP, "4")?;
    let disturbers = vec![
        again_and_again(DROP, "1", 0)?,
        again_and_again(DROP, "2", 1)?,
        again_and_again(DROP, "3", 2)?,
        again_and_again("/proc/sys/vm/compact_memory", "1", 1)?,
        need_memory()?,
    ];

    retrieve(stage, disturbers)
}
