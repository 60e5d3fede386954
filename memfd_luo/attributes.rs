// SPDX-License-Identifier: GPL-2.0

//! What a memfd has beside its content: size, position, seals, mode, owner, open flags and name.

use kernel::{
    fs::file::flags,
    memfd::{
        InMemory,
        MemoryFile,
        NewFile, //
    },
    prelude::*, //
};

use super::{
    abi::{
        memfd::{
            OpenFlags,
            SEALS_KNOWN, //
        },
        memfd_extents::FILE_NAME_LEN,
        Name, //
    },
    report::malformed, //
};

/// All of a memfd but its content. The name is shorter than `NAME` bytes.
pub(super) struct Attributes<const NAME: usize = FILE_NAME_LEN> {
    pub(super) position: u64,
    pub(super) size: u64,
    pub(super) seals: u32,
    pub(super) mode: u32,
    /// User and group, if they are known.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) open: OpenFlags,
    pub(super) name: Option<Name<NAME>>,
    /// Whether some pages are poisoned.
    pub(super) poisoned: bool,
}

/// The flags of open files that are carried over, as they are known here and there.
pub(super) const OPEN_FLAGS: [(u32, u32); 6] = [
    (flags::O_APPEND, OpenFlags::APPEND),
    (flags::O_NONBLOCK, OpenFlags::NONBLOCK),
    (flags::O_DIRECT, OpenFlags::DIRECT),
    (flags::O_NOATIME, OpenFlags::NOATIME),
    (flags::O_DSYNC, OpenFlags::DSYNC),
    (flags::O_SYNC, OpenFlags::DSYNC | OpenFlags::SYNC),
];

/// The access modes, likewise.
pub(super) const ACCESS_MODES: [(u32, u32); 3] = [
    (flags::O_RDONLY, OpenFlags::READ),
    (flags::O_WRONLY, OpenFlags::WRITE),
    (flags::O_RDWR, READ_WRITE),
];

pub(super) const READ_WRITE: u32 = OpenFlags::READ | OpenFlags::WRITE;

/// All flags of those rows of a table that `holds` picks, as known here and there.
pub(super) fn union<const N: usize>(
    table: [(u32, u32); N],
    holds: impl Fn(u32, u32) -> bool,
) -> (u32, u32) {
    table
        .iter()
        .filter(|(ours, theirs)| holds(*ours, *theirs))
        .fold((0, 0), |all, row| (all.0 | row.0, all.1 | row.1))
}

impl<const NAME: usize> Attributes<NAME> {
    /// Whether a file can be described: its seals, and the flags by which it is open.
    ///
    /// # Errors
    ///
    /// - [`EOPNOTSUPP`] if it has seals that are not known here, or other restrictions that would
    ///   be lost: nobody may gain rights by a live update.
    /// - [`EBADF`] if it is open neither for reading nor for writing.
    pub(super) fn check(memfd: &MemoryFile) -> Result<(u32, OpenFlags)> {
        let seals = memfd.seals();
        if seals & !SEALS_KNOWN != 0 || memfd.has_other_restrictions() {
            return Err(EOPNOTSUPP);
        }

        let flags = memfd.flags();
        let open = union(ACCESS_MODES, |ours, _| flags & flags::O_ACCMODE == ours).1
            | union(OPEN_FLAGS, |ours, _| flags & ours == ours).1;

        Ok((seals, OpenFlags::from_bits(open).ok_or(EBADF)?))
    }

    /// Looks at a file.
    ///
    /// # Errors
    ///
    /// Those of [`Attributes::check`].
    pub(super) fn of(memfd: &MemoryFile) -> Result<Self> {
        let (seals, open) = Self::check(memfd)?;

        Ok(Self {
            position: memfd.position(),
            size: memfd.size(),
            seals,
            mode: memfd.mode(),
            owner: Some(memfd.owner()),
            open,
            name: memfd.with_name(|name| Name::from_cstr(name).ok()),
            poisoned: false,
        })
    }

    /// Refuses a file that this kernel would take for a good one.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if pages are poisoned, and this kernel knows nothing of such pages.
    pub(super) fn expect_readable(&self) -> Result {
        if self.poisoned && !cfg!(CONFIG_MEMORY_FAILURE) {
            malformed("memfd: pages are poisoned, which this kernel cannot tell (MEMORY_FAILURE)");
            return Err(EOPNOTSUPP);
        }
        Ok(())
    }

    /// The name that a file is to be made with.
    pub(super) fn name(&self) -> &CStr {
        self.name.as_ref().map_or(c"", Name::as_cstr)
    }

    /// Makes a new file all of this, and a hole.
    pub(super) fn build<T: InMemory>(&self, mut file: NewFile<T>) -> Result<NewFile<T>> {
        file.set_mode(self.mode);
        if let Some(owner) = self.owner {
            file.set_owner(owner);
        }
        file.set_size(self.size)?;
        // After the mode, which has a say in it. Before opening anew, perhaps read-only.
        file.add_seals(self.seals)?;

        let flags = self.flags();
        if flags != flags::O_RDWR {
            file = file.reopen(flags)?;
        }
        file.set_position(self.position)?;
        Ok(file)
    }

    /// The flags by which the file is to be opened.
    fn flags(&self) -> u32 {
        let open = self.open.bits();

        union(ACCESS_MODES, |_, theirs| open & READ_WRITE == theirs).0
            | union(OPEN_FLAGS, |_, theirs| open & theirs == theirs).0
    }
}
