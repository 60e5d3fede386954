// SPDX-License-Identifier: GPL-2.0

//! Layouts: ways to describe a memfd for the next kernel.

use core::fmt;

use kernel::{
    liveupdate::{
        self,
        OutgoingAbi, //
    },
    prelude::*,
    shmem::PinnedExtent, //
};

use super::{
    abi::{
        Block,
        Memory,
        Phys, //
    },
    attributes::Attributes,
    late::FileJournal,
    parts::Part, //
};

/// Whether memfds shall be handed over as a kernel expects that has the C implementation.
pub(super) fn prefer_v2() -> bool {
    liveupdate::outgoing_abi() == OutgoingAbi::LuoV5
}

/// A way to write a memfd down.
///
/// A page holds a header, whose address is what LUO hands over; the header says where the content
/// is listed.
pub(super) trait Layout: 'static {
    /// Name and version.
    const COMPATIBLE: &'static CStr;

    /// Whether single pages that follow each other are one part; else each is one.
    const RUNS: bool;

    /// The list of the parts of the content, of an outgoing file.
    type Parts: Send;

    /// The same of an incoming file: where it is.
    type List;

    /// Whether new memfds shall be handed over in this way.
    fn wanted() -> bool;

    /// Whether a file can be described.
    ///
    /// # Errors
    ///
    /// Any, for the user who wants to preserve the file.
    fn check(attributes: &Attributes) -> Result;

    /// Lists the parts, which come in the order of the file.
    fn list(extents: &[PinnedExtent]) -> Result<Self::Parts>;

    /// Where the late folios are listed of the file for which `file` is handed over.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    fn journal(file: u64) -> Result<FileJournal>;

    /// Writes the header. `late` is the list of late folios.
    fn write(
        header: &mut Block,
        attributes: &Attributes,
        parts: &Self::Parts,
        late: Option<Phys>,
    ) -> Result;

    /// Reads the header.
    fn read(header: &Block) -> Result<(Attributes, Self::List)>;

    /// The list of late folios, if there may be some of this file.
    fn late(list: &Self::List) -> Option<Phys>;

    /// Reads from the header where the list is, whatever else the file has.
    fn read_list(header: &Block) -> Result<Self::List>;

    /// Describes the header in a few words, for debugfs.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it is not valid. This reports nothing.
    fn summarize(header: &Block, to: &mut dyn fmt::Write) -> Result;

    /// Goes through the list.
    ///
    /// If `mem` claims the pages that it reads, then the list is freed.
    fn walk<M: Memory<Error = Error>>(
        mem: &M,
        list: &Self::List,
        visit: impl FnMut(&Part) -> Result,
    ) -> Result;
}
