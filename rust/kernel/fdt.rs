// SPDX-License-Identifier: GPL-2.0

//! Flattened device trees: read one out of bytes, write one into bytes.
//!
//! This is about the format, not about the device tree that describes a machine: some kernel
//! interfaces, Kexec Handover among them, use it to pass named values around.
//!
//! C header: [`include/linux/libfdt.h`](srctree/include/linux/libfdt.h).

use crate::{
    bindings,
    prelude::*, //
};
use core::marker::PhantomData;

/// A flattened device tree in memory that we do not trust.
///
/// # Invariants
///
/// `bytes` starts with a header that `fdt_check_header()` accepts, and holds the whole tree as far
/// as the header tells its size. libfdt checks all that it follows against that size.
pub struct Fdt<'a> {
    bytes: &'a [u8],
}

/// Where the size of the whole tree stands in its header, as a big-endian number of 32 bits.
const TOTALSIZE: core::ops::Range<usize> = 4..8;

/// The size of the header of a tree, in bytes.
const HEADER_SIZE: usize = size_of::<bindings::fdt_header>();

impl<'a> Fdt<'a> {
    /// Views `bytes`, which may be longer than the tree, as a tree.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if they do not start with a header, are shorter than it says, or do not start at
    /// a multiple of 8 bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::fdt::{
    ///     Fdt,
    ///     FdtWriter, //
    /// };
    ///
    /// let mut buffer = [0u64; 32];
    /// let mut tree = FdtWriter::new(buffer.as_mut_bytes())?;
    /// tree.begin_node(c"")?;
    /// tree.property(c"answer", &[42])?;
    /// tree.begin_node(c"child")?;
    /// tree.end_node()?;
    /// tree.end_node()?;
    /// tree.finish()?;
    ///
    /// let tree = Fdt::new(buffer.as_bytes())?;
    /// assert_eq!(tree.property(c"/", c"answer"), Some(&[42][..]));
    /// assert_eq!(tree.property(c"/child", c"answer"), None);
    /// assert!(Fdt::new([0u64; 32].as_bytes()).is_err());
    /// # Ok::<(), Error>(())
    /// ```
    pub fn new(bytes: &'a [u8]) -> Result<Self> {
        if bytes.len() < HEADER_SIZE || !bytes.as_ptr().cast::<u64>().is_aligned() {
            return Err(EINVAL);
        }

        // SAFETY: `bytes` is at least as long as a header, which is all that is looked at.
        if unsafe { bindings::fdt_check_header(bytes.as_ptr().cast()) } != 0 {
            return Err(EINVAL);
        }

        let total = bytes
            .get(TOTALSIZE)
            .and_then(|size| size.try_into().ok())
            .map(u32::from_be_bytes)
            .and_then(|size| usize::try_from(size).ok())
            .ok_or(EINVAL)?;

        // INVARIANT: The header was checked above, and the size is here.
        Ok(Self {
            bytes: bytes.get(..total).ok_or(EINVAL)?,
        })
    }

    /// The value of the property `name` of the node at `path`, if there is one.
    pub fn property(&self, path: &CStr, name: &CStr) -> Option<&'a [u8]> {
        // SAFETY: By the type invariant this is a tree with a good header, all in memory.
        let node =
            unsafe { bindings::fdt_path_offset(self.bytes.as_ptr().cast(), path.as_char_ptr()) };
        if node < 0 {
            return None;
        }

        let mut len = 0;
        // SAFETY: As above; libfdt checks the offset, and `len` is ours to write.
        let value = unsafe {
            bindings::fdt_getprop(
                self.bytes.as_ptr().cast(),
                node,
                name.as_char_ptr(),
                &mut len,
            )
        };

        // The value is a part of `bytes`; finding it again there costs no trust in libfdt.
        let start = value.addr().checked_sub(self.bytes.as_ptr().addr())?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        self.bytes.get(start..end)
    }
}

/// Writes a tree into a buffer, front to back.
///
/// # Invariants
///
/// `buffer` is ours for `'a`, and was initialized by `fdt_create()`, which noted its size there.
pub struct FdtWriter<'a> {
    buffer: *mut c_void,
    _buffer: PhantomData<&'a mut [u8]>,
}

impl<'a> FdtWriter<'a> {
    /// Begins a tree at the start of `buffer`. Its root is the first node, whose name is empty.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if the buffer is too small, here and in the other methods.
    pub fn new(buffer: &'a mut [u8]) -> Result<Self> {
        let len = c_int::try_from(buffer.len()).unwrap_or(c_int::MAX);
        let buffer = buffer.as_mut_ptr().cast();

        // SAFETY: `buffer` is ours to write, and has at least `len` bytes.
        check(unsafe { bindings::fdt_create(buffer, len) })?;
        // SAFETY: `fdt_create()` initialized the buffer.
        check(unsafe { bindings::fdt_finish_reservemap(buffer) })?;

        // INVARIANT: As just done.
        Ok(Self {
            buffer,
            _buffer: PhantomData,
        })
    }

    /// Opens a node inside the one that is open.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the call makes no sense here; likewise the other methods.
    pub fn begin_node(&mut self, name: &CStr) -> Result {
        // SAFETY: By the type invariant. libfdt checks where it is, and that there is room.
        check(unsafe { bindings::fdt_begin_node(self.buffer, name.as_char_ptr()) })
    }

    /// Gives the open node a property. Properties come before inner nodes.
    pub fn property(&mut self, name: &CStr, value: &[u8]) -> Result {
        let len = c_int::try_from(value.len()).map_err(|_| ENOSPC)?;

        // SAFETY: By the type invariant, and `value` has `len` bytes. libfdt checks where it is,
        // and that there is room.
        check(unsafe {
            bindings::fdt_property(self.buffer, name.as_char_ptr(), value.as_ptr().cast(), len)
        })
    }

    /// Closes the open node.
    pub fn end_node(&mut self) -> Result {
        // SAFETY: By the type invariant. libfdt checks where it is, and that there is room.
        check(unsafe { bindings::fdt_end_node(self.buffer) })
    }

    /// Ends the tree, which is only then one that can be read.
    pub fn finish(self) -> Result {
        // SAFETY: By the type invariant. libfdt checks that all nodes are closed.
        check(unsafe { bindings::fdt_finish(self.buffer) })
    }
}

/// Turns what libfdt's writing functions return into a [`Result`].
fn check(ret: c_int) -> Result {
    match ret.unsigned_abs() {
        0 => Ok(()),
        bindings::FDT_ERR_NOSPACE => Err(ENOSPC),
        _ => Err(EINVAL),
    }
}
