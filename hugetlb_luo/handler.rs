// SPDX-License-Identifier: GPL-2.0

//! `hugetlb-memfd-v1`: the file handler.

use core::{
    fmt,
    ptr, //
};

use kernel::{
    crc32c::crc32c,
    fs::File,
    hugetlb::HugeMemfd,
    kho::{
        Preserved,
        Unclaimed, //
    },
    liveupdate::{
        self,
        AnyFlb,
        FileHandler,
        FileState, //
        Outcome,
        OutgoingAbi,
        RetrieveError,
    },
    memfd,
    prelude::*,
    sync::aref::ARef, //
};

use super::{
    abi::{
        hugetlb::{
            HugetlbHeader,
            COMPATIBLE_HUGETLB, //
        },
        Block, //
    },
    kept::{
        Kept,
        KeptState, //
    },
    pool,
    preserve::HugeState,
    report::unclaimed,
    restore::{
        discard,
        read_header,
        Description, //
    },
    retrieve::retrieve, //
};

/// The handler of memfds of huge pages.
pub(super) struct Handler;

/// A preserved file.
pub(super) enum State {
    /// It is a file of this kernel.
    Frozen(HugeState),
    /// It is handed over as it came.
    Kept { _state: KeptState },
}

// A kernel that can only keep such files does not say that it reads them.
#[cfg(CONFIG_LIVEUPDATE_HUGETLB)]
kernel::liveupdate_note!("handler", COMPATIBLE_HUGETLB);

#[vtable]
impl FileHandler for Handler {
    const COMPATIBLE: &'static CStr = COMPATIBLE_HUGETLB;
    type Handle = Preserved<Block>;
    type State = State;

    fn flbs() -> &'static [&'static dyn AnyFlb] {
        pool::flbs()
    }

    /// The C implementation has no handler for such files.
    fn can_preserve(file: &File) -> bool {
        liveupdate::outgoing_abi() != OutgoingAbi::LuoV5
            && (HugeMemfd::from_file(file).is_some() || Kept::of(file).is_some())
    }

    fn id(file: &File) -> usize {
        match Kept::of(file) {
            // Anonymous files share an inode.
            Some(kept) => ptr::from_ref(kept).addr(),
            None => memfd::inode_id(file),
        }
    }

    fn preserve(file: &File) -> Result<(Preserved<Block>, State)> {
        if let Some(kept) = Kept::of(file) {
            let (header, state) = kept.preserve()?;
            return Ok((header, State::Kept { _state: state }));
        }

        let (header, state) = HugeState::new(HugeMemfd::from_file(file).ok_or(EINVAL)?)?;
        Ok((header, State::Frozen(state)))
    }

    fn freeze(_file: &File, state: &mut State, header: &mut Preserved<Block>) -> Result {
        match state {
            State::Frozen(state) => state.freeze(header),
            State::Kept { .. } => Ok(()),
        }
    }

    fn unfreeze(_file: &File, state: &mut State, _header: &mut Preserved<Block>) {
        if let State::Frozen(state) = state {
            state.unfreeze();
        }
    }

    fn unpreserve(_file: &File, state: State, header: Preserved<Block>) {
        drop(header);
        drop(state);
    }

    fn retrieve(header: Unclaimed<Block>) -> Result<ARef<File>, RetrieveError<Unclaimed<Block>>> {
        let open = |memfd: &Description| {
            memfd.make().map_err(|e| match e {
                ENODEV => RetrieveError::Again(ENODEV, ()),
                e => unclaimed(e),
            })
        };

        match retrieve::<Self::Handle, _, _>(header, Description::read, open, Description::fill) {
            // Another kernel may have such pages.
            Err(RetrieveError::Again(ENODEV, header)) if liveupdate::is_rebooting() => {
                Kept::file(header)
            }
            result => result,
        }
    }

    fn finish(outcome: Outcome<'_, Unclaimed<Block>>) {
        match outcome {
            Outcome::Retrieved(file) => {
                if let Some(kept) = Kept::of(file) {
                    kept.discard();
                }
            }
            // Where it failed before anything was claimed, everything is still there.
            Outcome::NotRetrieved(header) => discard(header),
            Outcome::Failed { left, .. } => drop(left.map(discard)),
        }
    }

    fn summarize(file: FileState<'_, Self>, to: &mut dyn fmt::Write) -> Result {
        let (size, pages, order) = match file {
            FileState::Preserved {
                state: State::Frozen(state),
                ..
            } => (state.file.size(), state.pages(), state.file.order()),
            FileState::Preserved { handle, .. } => {
                let header = HugetlbHeader::of(handle).ok_or(EINVAL)?;
                let memfd = header.parse(crc32c).map_err(|_| EINVAL)?;
                (memfd.size, memfd.nr_pages, memfd.order.into())
            }
            FileState::Incoming(header) => {
                let memfd = read_header(header)?;
                (memfd.size, memfd.nr_pages, memfd.order.into())
            }
            FileState::Retrieved(file) => {
                let memfd = HugeMemfd::from_file(file).ok_or(EINVAL)?;
                return Ok(write!(to, "size {}", memfd.size())?);
            }
        };
        Ok(write!(
            to,
            "size {size}, {} pages of {} KiB",
            pages.checked_shr(order).unwrap_or(0),
            4_u64.checked_shl(order).unwrap_or(0)
        )?)
    }
}
