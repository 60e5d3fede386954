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
        Filling,
        Memfd,
        PinnedExtent, //
    },
    sync::aref::ARef, //
};

use super::{
    abi::Block,
    attributes::Attributes,
    layout::Layout,
    preserve::MemfdState,
    report::unclaimed,
    restore::{
        discard,
        Description, //
    }, //
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

    fn retrieve(header: Unclaimed<Block>) -> Retrieved {
        retrieve::<L>(header, Attributes::new_file)
    }

    fn retrieve_into(header: Unclaimed<Block>, target: &File) -> Retrieved {
        retrieve::<L>(header, |attributes, pages| {
            attributes.into_target(target, pages)
        })
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

/// What [`FileHandler::retrieve`] returns here.
type Retrieved = Result<ARef<File>, RetrieveError<Unclaimed<Block>>>;

/// Restores a memfd into the file that `open` returns for its attributes and number of pages.
fn retrieve<L: Layout>(
    header: Unclaimed<Block>,
    open: impl FnOnce(&Attributes, usize) -> Result<Filling, RetrieveError<()>>,
) -> Retrieved {
    let opened = Description::<L>::read(&header)
        .map_err(unclaimed)
        .and_then(|description| {
            let file = open(&description.attributes, description.pages)?;
            Ok((file, description))
        });

    match opened {
        Ok((file, description)) => Ok(description.fill(file, header)?),
        Err(RetrieveError::Again(e, ())) => Err(RetrieveError::Again(e, header)),
        // What the header lists may still be there when the file is finished.
        Err(RetrieveError::Final(e)) => {
            header.into_phys();
            Err(RetrieveError::Final(e))
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
