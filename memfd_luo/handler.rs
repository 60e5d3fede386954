// SPDX-License-Identifier: GPL-2.0

//! The file handler for memfds in one layout.

use core::{
    fmt,
    marker::PhantomData, //
};

use kernel::{
    fs::File,
    kho::{
        Preserved,
        Unclaimed, //
    },
    liveupdate::{
        FileHandler,
        FileState, //
        Outcome,
        RetrieveError,
    },
    prelude::*,
    shmem::{
        self,
        Memfd,
        PinnedExtent, //
    },
    sync::aref::ARef, //
};

use super::{
    abi::Block,
    layout::Layout,
    preserve::MemfdState,
    restore::{
        discard,
        Description, //
    },
    retrieve::retrieve, //
};

/// The handler for memfds in one layout.
pub(super) struct Handler<L>(PhantomData<L>);

#[vtable]
impl<L: Layout> FileHandler for Handler<L> {
    const COMPATIBLE: &'static CStr = L::COMPATIBLE;
    type Handle = Preserved<Block>;
    type State = MemfdState<L>;

    fn can_preserve(file: &File) -> bool {
        L::wanted() && Memfd::from_file(file).is_some()
    }

    fn id(file: &File) -> usize {
        shmem::inode_id(file)
    }

    fn preserve(file: &File) -> Result<(Preserved<Block>, MemfdState<L>)> {
        MemfdState::new(Memfd::from_file(file).ok_or(EINVAL)?)
    }

    fn freeze(_file: &File, state: &mut MemfdState<L>, header: &mut Preserved<Block>) -> Result {
        state.freeze(header)
    }

    fn unfreeze(_file: &File, state: &mut MemfdState<L>, _header: &mut Preserved<Block>) {
        state.unfreeze();
    }

    fn unpreserve(_file: &File, state: MemfdState<L>, header: Preserved<Block>) {
        drop(header);
        drop(state);
    }

    fn retrieve(header: Unclaimed<Block>) -> Result<ARef<File>, RetrieveError<Unclaimed<Block>>> {
        retrieve::<Self::Handle, _, _>(
            header,
            Description::<L>::read,
            |memfd| memfd.attributes.new_file(memfd.pages),
            Description::fill,
        )
    }

    fn retrieve_into(
        header: Unclaimed<Block>,
        target: &File,
    ) -> Result<ARef<File>, RetrieveError<Unclaimed<Block>>> {
        retrieve::<Self::Handle, _, _>(
            header,
            Description::<L>::read,
            |memfd| memfd.attributes.fit_target(target, memfd.pages),
            Description::fill,
        )
    }

    fn finish(outcome: Outcome<'_, Unclaimed<Block>>) {
        match outcome {
            Outcome::Retrieved(_) => {}
            // Where it failed before anything was claimed, everything is still there.
            Outcome::NotRetrieved(header) => discard::<L>(header),
            Outcome::Failed { left, .. } => drop(left.map(discard::<L>)),
        }
    }

    fn summarize(file: FileState<'_, Self>, to: &mut dyn fmt::Write) -> Result {
        match file {
            FileState::Preserved { state, .. } => {
                summarize_preserved(&state.mapping, &state.extents, to)
            }
            FileState::Incoming(header) => L::summarize(&*header.copy()?, to),
            FileState::Retrieved(file) => summarize_retrieved(file, to),
        }
    }
}

/// Describes a preserved file, for debugfs.
pub(super) fn summarize_preserved(
    memfd: &Memfd,
    extents: &[PinnedExtent],
    to: &mut dyn fmt::Write,
) -> Result {
    let (mut pages, mut folios) = (0_u64, 0_u64);

    for extent in extents {
        let count = u64::from(extent.pages());
        pages = pages.saturating_add(count);
        folios = folios.saturating_add(count >> extent.order());
    }
    let (size, extents) = (memfd.size(), extents.len());
    Ok(write!(
        to,
        "size {size}, {pages} pages, {folios} folios, {extents} extents"
    )?)
}

/// Describes a retrieved file, for debugfs.
pub(super) fn summarize_retrieved(file: &File, to: &mut dyn fmt::Write) -> Result {
    let memfd = Memfd::from_file(file).ok_or(EINVAL)?;

    Ok(write!(to, "size {}", memfd.size())?)
}
