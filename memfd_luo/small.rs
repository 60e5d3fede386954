// SPDX-License-Identifier: GPL-2.0

//! `memfd-small-v3`: the handler for memfds of at most one page, of which there may be many.
//!
//! Such a file is described in a [slot](Slot) of fixed size. When it is preserved, its page is only
//! pinned. The freeze describes the file and preserves the page, together with those of other
//! files.

use core::{
    fmt,
    slice, //
};

use kernel::{
    crc32c::crc32c,
    fs::File,
    liveupdate::{
        is_rebooting,
        FileHandler,
        FileState, //
        Handover,
        Outcome,
        RetrieveError,
    },
    prelude::*,
    shmem::{
        self,
        Filling,
        FrozenMapping,
        Memfd,
        PinnedExtent,
        RecordedMapping, //
    },
    sync::aref::ARef, //
};

use super::{
    abi::{
        memfd_small::{
            self as layout,
            Small as SmallDescription,
            SmallError,
            SmallRecord,
            SMALL_NAME_LEN,
            SMALL_PAGES, //
        },
        Phys, //
    },
    attributes,
    handler::{
        summarize_preserved,
        summarize_retrieved, //
    },
    late::{
        self,
        FileJournal, //
    },
    layout::prefer_v2,
    parts::Part,
    preserve::{
        expect_no_poison,
        pages_of, //
    },
    report::{
        bad_header,
        extent_of,
        malformed, //
    },
    restore::{
        free_late,
        late_parts, //
    },
    retrieve::retrieve,
    slots::{
        IncomingSlot,
        Slot, //
    },
    version::CURRENT, //
};

/// The attributes of a file, with a name that is not long.
type Attributes = attributes::Attributes<SMALL_NAME_LEN>;

/// The handler. The current version is written. The others are read.
pub(super) struct Small<const VERSION: u32>;

/// A preserved small memfd. Its content is with the slot. Dropping it undoes all but that.
pub(super) struct SmallState {
    /// How many pages the content has: none or one.
    pages: u32,
    mapping: RecordedMapping<FileJournal>,
}

impl SmallState {
    /// Describes the file, and has the page recorded that may still be inserted.
    fn describe(&mut self, slot: &mut Slot) -> Result {
        let mut late = None;

        if self.pages == 0 && self.mapping.size() > 0 {
            let journal = FileJournal::new(slot.to_bits())?;
            late = journal.list();
            self.mapping.start(journal)?;
            self.catch_up(slot)?;
        }
        let mapping = &self.mapping;
        slot.preserve(late, |content| describe(mapping, content))
    }

    /// Pins the page that was inserted before that was recorded.
    fn catch_up(&mut self, slot: &mut Slot) -> Result {
        if !self.mapping.has_changed() {
            return Ok(());
        }
        if let Some(content) = content(&self.mapping)? {
            self.mapping.take_over(slice::from_ref(&content));
            self.pages = content.pages();
            slot.fill(content)?;
        }
        self.mapping.caught_up();
        Ok(())
    }
}

/// Pins the page, if there is one.
fn content(mapping: &FrozenMapping) -> Result<Option<PinnedExtent>> {
    mapping
        .pins(0..SMALL_PAGES, true)?
        .for_reboot(is_rebooting())
        .next()
}

fn describe(mapping: &FrozenMapping, content: Option<&PinnedExtent>) -> Result<SmallRecord> {
    let attributes = Attributes {
        poisoned: mapping.has_poison(),
        ..Attributes::of(mapping)?
    };
    let (uid, gid) = attributes.owner.ok_or(EINVAL)?;

    Ok(SmallRecord::new(&SmallDescription {
        pos: attributes.position,
        size: attributes.size,
        seals: attributes.seals,
        open: attributes.open,
        mode: attributes.mode,
        uid,
        gid,
        name: attributes.name,
        extent: content.map(extent_of).transpose()?,
        poisoned: attributes.poisoned,
    })
    .summed(crc32c))
}

kernel::liveupdate_note!("handler", layout::COMPATIBLE_SMALL);
kernel::liveupdate_note!("handler", layout::COMPATIBLE_SMALL_V2);
kernel::liveupdate_note!("handler", layout::COMPATIBLE_SMALL_V1);

#[vtable]
impl<const VERSION: u32> FileHandler for Small<VERSION> {
    const COMPATIBLE: &'static CStr = match VERSION {
        1 => layout::COMPATIBLE_SMALL_V1,
        2 => layout::COMPATIBLE_SMALL_V2,
        _ => layout::COMPATIBLE_SMALL,
    };
    type Handle = Slot;
    type State = SmallState;

    fn can_preserve(file: &File) -> bool {
        VERSION == CURRENT
            && !prefer_v2()
            && Memfd::from_file(file).is_some_and(|memfd| {
                pages_of(memfd.size()) <= SMALL_PAGES
                    && memfd.name_len() < SMALL_NAME_LEN
                    // Else it can get a longer name until the reboot.
                    && !memfd.is_linked()
            })
    }

    fn id(file: &File) -> usize {
        shmem::inode_id(file)
    }

    fn preserve(file: &File) -> Result<(Slot, SmallState)> {
        let mapping = RecordedMapping::new(Memfd::from_file(file).ok_or(EINVAL)?)?;
        if pages_of(mapping.size()) > SMALL_PAGES {
            // It has become larger since it was looked at.
            return Err(EAGAIN);
        }

        // The file is described at the freeze.
        Attributes::check(&mapping)?;

        let content = content(&mapping)?;
        expect_no_poison(&mapping)?;
        let pages = content.as_ref().map_or(0, PinnedExtent::pages);
        let slot = Slot::new(content)?;
        let state = SmallState { pages, mapping };
        Ok((slot, state))
    }

    fn freeze(_file: &File, state: &mut SmallState, slot: &mut Slot) -> Result {
        state.describe(slot).inspect_err(|_| state.mapping.stop())
    }

    fn unfreeze(_file: &File, state: &mut SmallState, _slot: &mut Slot) {
        state.mapping.stop();
    }

    fn unpreserve(_file: &File, state: SmallState, slot: Slot) {
        drop(slot);
        drop(state);
    }

    fn retrieve(incoming: IncomingSlot) -> Result<ARef<File>, RetrieveError<IncomingSlot>> {
        retrieve::<Self::Handle, _, _>(
            incoming,
            read::<VERSION>,
            |memfd| memfd.attributes.new_file(memfd.pages()),
            Description::fill,
        )
    }

    fn retrieve_into(
        incoming: IncomingSlot,
        target: &File,
    ) -> Result<ARef<File>, RetrieveError<IncomingSlot>> {
        retrieve::<Self::Handle, _, _>(
            incoming,
            read::<VERSION>,
            |memfd| memfd.attributes.fit_target(target, memfd.pages()),
            Description::fill,
        )
    }

    fn finish(outcome: Outcome<'_, IncomingSlot>) {
        match outcome {
            Outcome::Retrieved(_) => {}
            Outcome::NotRetrieved(incoming) => discard::<VERSION>(incoming),
            Outcome::Failed { left, .. } => drop(left.map(discard::<VERSION>)),
        }
    }

    fn summarize(file: FileState<'_, Self>, to: &mut dyn fmt::Write) -> Result {
        match file {
            FileState::Preserved { state, handle, .. } => handle.with_content(|content| {
                let extents = content.map_or(&[][..], slice::from_ref);
                summarize_preserved(&state.mapping, extents, to)
            }),
            FileState::Incoming(incoming) => {
                let memfd = incoming.read::<VERSION>()?.0.parse().map_err(|_| EINVAL)?;
                let (size, extent) = (memfd.size, memfd.extent);
                let (pages, extents) = extent.map_or((0, 0), |extent| (extent.pages, 1));
                Ok(write!(to, "size {size}, {pages} pages, {extents} extents")?)
            }
            FileState::Retrieved(file) => summarize_retrieved(file, to),
        }
    }
}

/// The validated description of an incoming memfd.
struct Description {
    attributes: Attributes,
    /// The page, or the folio that begins with it.
    part: Option<Part>,
    /// The list of late folios, if the page may be in it.
    late: Option<Phys>,
}

impl Description {
    fn pages(&self) -> usize {
        self.part.map_or(0, |part| part.pages)
    }

    /// Puts the page into `file`.
    fn fill(self, mut file: Filling, incoming: IncomingSlot) -> Result<ARef<File>> {
        let filled = match self.part {
            Some(part) => part.fill(&mut file, SMALL_PAGES),
            None => Ok(()),
        };

        if let Some(list) = self.late {
            late::finished(list);
        }
        drop(incoming);
        filled?;
        Ok(file.into_file())
    }
}

/// Reads and validates the description, and claims nothing that is the file's own.
fn read<const VERSION: u32>(incoming: &IncomingSlot) -> Result<Description> {
    let (record, list) = incoming.read::<VERSION>().map_err(|e| match e {
        EUCLEAN => {
            let slot = incoming.to_bits();
            malformed(format_args!(
                "memfd slot at {slot:#x}: checksum does not match"
            ));
            EUCLEAN
        }
        e => e,
    })?;
    let memfd = record.parse().map_err(|e| match e {
        SmallError::Memfd(e) => bad_header(e),
        SmallError::Extent(e) => malformed(e),
    })?;
    let late = list.filter(|_| may_be_late(&memfd));
    let part = match &memfd.extent {
        Some(extent) => Some(Part::of(extent)?),
        None => late_parts(late, incoming.to_bits())?.pop(),
    };
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
        poisoned: memfd.poisoned,
    };
    attributes.expect_readable()?;
    Ok(Description {
        attributes,
        part,
        late,
    })
}

/// Whether the page of a file may be in the list of late folios.
fn may_be_late(memfd: &SmallDescription) -> bool {
    memfd.extent.is_none() && memfd.size > 0
}

/// Frees all that is left of an incoming memfd.
fn discard<const VERSION: u32>(incoming: IncomingSlot) {
    let freed = incoming.read::<VERSION>().and_then(|(record, list)| {
        let memfd = record.parse().map_err(|_| EINVAL);
        match record.extent().map_err(malformed)? {
            Some(extent) => Part::of(&extent)?.free(),
            None => free_late(
                list.filter(|_| memfd.as_ref().is_ok_and(may_be_late)),
                incoming.to_bits(),
            ),
        }
    });
    if freed.is_err() {
        pr_warn!("memory of a memfd that was not retrieved stays reserved\n");
    }
}
