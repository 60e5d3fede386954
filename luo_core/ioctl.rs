// SPDX-License-Identifier: GPL-2.0

//! Extensible ioctls: arguments that begin with their own size.
//!
//! User space says how large the structure is that it knows. What it does not know is taken as
//! zero, what this kernel does not know must be zero. The answer goes into the same structure.
//!
//! An ioctl that fails must have changed nothing, neither here nor in user memory. So the memory
//! for the answer is tried before anything is done ([`Argument::check_writable`]), and the
//! descriptor, the only thing ever answered late, is one aligned word that is written last.

use kernel::{
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};
use zerocopy::Immutable;

use crate::uapi::Request;

/// Where the descriptor stands in each request that answers one: behind the size.
const FD_OFFSET: usize = size_of::<u32>();

/// The number of a command, apart from its type, direction and size.
pub(crate) const fn number(cmd: u32) -> u8 {
    cmd.to_le_bytes()[0]
}

/// The argument of an ioctl whose size has been read, but nothing else.
pub(crate) struct RawArgument {
    user: UserPtr,
    size: u32,
}

impl RawArgument {
    /// # Errors
    ///
    /// [`EFAULT`] if the size cannot be read.
    pub(crate) fn new(arg: usize) -> Result<Self> {
        let user = UserPtr::from_addr(arg);
        let size = UserSlice::new(user, size_of::<u32>()).reader().read()?;

        Ok(Self { user, size })
    }

    /// Reads the argument as a `T`.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if it is smaller than any `T` ever was.
    /// - [`E2BIG`] if it is larger than a `T`, and not zero there.
    /// - [`EFAULT`] if it cannot be read.
    pub(crate) fn read<T: Request + FromBytes + IntoBytes>(self) -> Result<Argument<T>> {
        let size = usize::try_from(self.size)?;
        if size < T::MIN_SIZE {
            return Err(EINVAL);
        }

        let known = size.min(size_of::<T>());
        let mut reader = UserSlice::new(self.user, size).reader();
        let mut value = T::new_zeroed();
        let head = value.as_mut_bytes().get_mut(..known).ok_or(EINVAL)?;
        reader.read_slice(head)?;

        let mut chunk = [0; 64];
        while !reader.is_empty() {
            let len = reader.len().min(chunk.len());
            let tail = chunk.get_mut(..len).ok_or(EINVAL)?;
            reader.read_slice(tail)?;
            if tail.iter().any(|byte| *byte != 0) {
                return Err(E2BIG);
            }
        }

        Ok(Argument {
            value,
            user: self.user,
            known,
        })
    }
}

/// The argument of an ioctl.
pub(crate) struct Argument<T> {
    value: T,
    user: UserPtr,
    known: usize,
}

impl<T: IntoBytes + Immutable> Argument<T> {
    /// Finds out whether the answer can be written, by writing what is there already.
    ///
    /// # Errors
    ///
    /// [`EFAULT`] if not.
    pub(crate) fn check_writable(&self) -> Result {
        self.write(&self.value)
    }

    /// Writes `value` over the argument, as much of it as user space knows.
    ///
    /// # Errors
    ///
    /// [`EFAULT`].
    pub(crate) fn write(&self, value: &T) -> Result {
        let bytes = value.as_bytes().get(..self.known).ok_or(EINVAL)?;
        UserSlice::new(self.user, self.known)
            .writer()
            .write_slice(bytes)
    }

    /// Writes the answer of a request for a descriptor.
    ///
    /// # Errors
    ///
    /// [`EFAULT`]; user memory is as before then.
    pub(crate) fn write_fd(&self, fd: u32) -> Result {
        UserSlice::new(self.user.wrapping_byte_add(FD_OFFSET), size_of::<u32>())
            .writer()
            .write_slice(&fd.to_ne_bytes())
    }
}

impl<T> core::ops::Deref for Argument<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}
