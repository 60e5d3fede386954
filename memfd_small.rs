// SPDX-License-Identifier: GPL-2.0

//! Memfds of at most one page, of which there may be many: [`Small`], in the layout
//! `memfd-small-v1`.
//!
//! The life of such a file is that of a larger one, but all that is to be told of it fits into a
//! [slot](Slot) of fixed size. When it is preserved, its page is only pinned; the freeze describes it
//! and promises the page, together with those of others.

use core::{
    fmt,
    slice, //
};

use kernel::{
    fs::File,
    liveupdate::{
        FileHandler,
        Outcome,
        RetrieveError,
        Seen, //
    },
    page::PAGE_SIZE,
    prelude::*,
    shmem::{
        self,
        ClosedMapping,
        Filling,
        FrozenMapping,
        Memfd,
        PinnedExtent, //
    },
    sync::aref::ARef, //
};

use super::{
    abi::memfd_small::{
        self as layout,
        Small as Description,
        SmallError,
        SmallRecord,
        SMALL_NAME_LEN,
        SMALL_PAGES, //
    },
    bad_header,
    extent_of,
    is_shortage,
    malformed,
    memfd_slots::{
        Arrived,
        Slot, //
    },
    pages_of,
    prefer_v2,
    summarize,
    summarize_file,
    Part, //
};

/// The attributes of a file, with a name that is not long.
type Attributes = super::Attributes<SMALL_NAME_LEN>;

/// The handler.
pub(super) struct Small;

/// What keeps a file as it is, beside its content, which is with the slot. Dropping it undoes all.
pub(super) struct State {
    /// How many pages there are; none in a hole.
    pages: u32,
    /// While a kexec is going on, and there is a hole: nobody fills it.
    closed: Option<ClosedMapping>,
    mapping: FrozenMapping,
}

/// Pins the page, if there is one.
fn content(mapping: &FrozenMapping) -> Result<Option<PinnedExtent>> {
    mapping.pins(0..SMALL_PAGES, true)?.next()
}

fn describe(mapping: &FrozenMapping, content: Option<&PinnedExtent>) -> Result<SmallRecord> {
    let attributes = Attributes::of(mapping)?;
    let (uid, gid) = attributes.owner.ok_or(EINVAL)?;

    Ok(SmallRecord::new(&Description {
        pos: attributes.position,
        size: attributes.size,
        seals: attributes.seals,
        open: attributes.open,
        mode: attributes.mode,
        uid,
        gid,
        name: attributes.name,
        extent: content.map(extent_of).transpose()?,
    }))
}

#[vtable]
impl FileHandler for Small {
    const COMPATIBLE: &'static CStr = layout::COMPATIBLE_SMALL;
    type Handle = Slot;
    type State = State;

    fn can_preserve(file: &File) -> bool {
        !prefer_v2()
            && Memfd::from_file(file).is_some_and(|memfd| {
                pages_of(memfd.size()) <= SMALL_PAGES && memfd.name_len() < SMALL_NAME_LEN
            })
    }

    fn id(file: &File) -> usize {
        shmem::inode_id(file)
    }

    fn preserve(file: &File) -> Result<(Slot, State)> {
        let mapping = FrozenMapping::new(Memfd::from_file(file).ok_or(EINVAL)?)?;
        if pages_of(mapping.size()) > SMALL_PAGES {
            // It has become larger since it was looked at.
            return Err(EAGAIN);
        }

        // What there is to be said of it is said at the freeze.
        Attributes::check(&mapping)?;

        let content = content(&mapping)?;
        let pages = content.as_ref().map_or(0, PinnedExtent::pages);
        let slot = Slot::new(content)?;
        let state = State {
            pages,
            closed: None,
            mapping,
        };
        Ok((slot, state))
    }

    fn freeze(_file: &File, state: &mut State, slot: &mut Slot) -> Result {
        let mapping = &state.mapping;
        let closed = match state.pages {
            0 if mapping.size() > 0 => Some(mapping.close()?),
            _ => None,
        };
        if closed.is_some() {
            if let Some(content) = content(mapping)? {
                state.pages = content.pages();
                slot.fill(content)?;
            }
        }

        slot.promise(|content| describe(mapping, content))?;
        state.closed = closed;
        Ok(())
    }

    fn unfreeze(_file: &File, state: &mut State, _slot: &mut Slot) {
        state.closed = None;
    }

    fn unpreserve(_file: &File, state: State, slot: Slot) {
        drop(slot);
        drop(state);
    }

    fn retrieve(arrived: Arrived) -> Result<ARef<File>, RetrieveError<Arrived>> {
        let read = read(&arrived).and_then(|(attributes, part)| {
            let pages = part.map_or(0, |part| part.pages);
            Ok((attributes.build()?.fill(pages)?, part))
        });

        match read {
            Ok((file, part)) => {
                drop(arrived);
                Ok(fill(file, part)?)
            }
            Err(e) if is_shortage(e) => Err(RetrieveError::Again(e, arrived)),
            // The page may still be there when the file is finished.
            Err(e) => {
                arrived.leave();
                Err(RetrieveError::Final(e))
            }
        }
    }

    fn finish(outcome: Outcome<'_, Arrived>) {
        match outcome {
            Outcome::Retrieved(_) => {}
            Outcome::NeverAsked(arrived) => discard(arrived),
            Outcome::Failed { left, .. } => drop(left.map(discard)),
        }
    }

    fn summarize(seen: Seen<'_, Self>, to: &mut dyn fmt::Write) -> Result {
        match seen {
            Seen::Preserved { state, handle, .. } => handle.with_content(|content| {
                let extents = content.map_or(&[][..], slice::from_ref);
                summarize(&state.mapping, extents, to)
            }),
            Seen::Waiting(arrived) => {
                let memfd = arrived.read()?.parse().map_err(|_| EINVAL)?;
                let (size, extent) = (memfd.size, memfd.extent);
                let (pages, extents) = extent.map_or((0, 0), |extent| (extent.pages, 1));
                Ok(write!(to, "size {size}, {pages} pages, {extents} extents")?)
            }
            Seen::Retrieved(file) => summarize_file(file, to),
        }
    }

    fn content(state: &State, _slot: &Slot) -> u64 {
        u64::from(state.pages).saturating_mul(PAGE_SIZE as u64)
    }
}

/// Reads and validates the description, and claims nothing that is the file's own.
fn read(arrived: &Arrived) -> Result<(Attributes, Option<Part>)> {
    let memfd = arrived.read()?.parse().map_err(|e| match e {
        SmallError::Memfd(e) => bad_header(e),
        SmallError::Extent(e) => malformed(e),
    })?;
    let part = memfd.extent.as_ref().map(Part::of).transpose()?;
    if let Some(part) = &part {
        part.find()?;
    }

    let attributes = Attributes {
        position: memfd.pos,
        size: memfd.size,
        seals: memfd.seals,
        mode: memfd.mode,
        owner: Some((memfd.uid, memfd.gid)),
        open: memfd.open,
        name: memfd.name,
    };
    Ok((attributes, part))
}

fn fill(mut file: Filling, part: Option<Part>) -> Result<ARef<File>> {
    if let Some(part) = part {
        part.fill(&mut file, SMALL_PAGES)?;
    }
    Ok(file.into_file())
}

/// Frees all that is left of an incoming memfd.
fn discard(arrived: Arrived) {
    let freed = arrived
        .read()
        .and_then(|record| record.extent().map_err(malformed))
        .and_then(|extent| match &extent {
            Some(extent) => Part::of(extent)?.free(),
            None => Ok(()),
        });
    if freed.is_err() {
        pr_warn!("memory of a memfd that nobody retrieved stays reserved\n");
    }
}
