// SPDX-License-Identifier: GPL-2.0

//! Device trees, as [`root`](super::root) reads and writes them: the kernel has libfdt for that,
//! and the host other libraries.

use core::ffi::CStr;

/// A device tree to be read.
pub trait Tree {
    /// The value of a property of the node at a path such as `/luo-session`.
    fn property(&self, node: &CStr, name: &CStr) -> Option<&[u8]>;
}

/// A device tree to be written, from the root node on, in order.
pub trait TreeBuilder {
    /// Why nothing could be written.
    type Error;

    /// Begins a node inside the one that was begun last and has not ended. The root node's name is
    /// empty.
    ///
    /// # Errors
    ///
    /// As the library has it; the tree is of no use then. So also for the others.
    fn begin_node(&mut self, name: &CStr) -> Result<(), Self::Error>;

    /// Ends the node that was begun last and has not ended.
    ///
    /// # Errors
    ///
    /// As [`Self::begin_node`].
    fn end_node(&mut self) -> Result<(), Self::Error>;

    /// Adds a property to a node that has no nodes yet.
    ///
    /// # Errors
    ///
    /// As [`Self::begin_node`].
    fn property(&mut self, name: &CStr, value: &[u8]) -> Result<(), Self::Error>;

    /// Adds a number in native byte order.
    ///
    /// # Errors
    ///
    /// As [`Self::begin_node`].
    fn property_u64(&mut self, name: &CStr, value: u64) -> Result<(), Self::Error> {
        self.property(name, &value.to_ne_bytes())
    }

    /// Adds a string.
    ///
    /// # Errors
    ///
    /// As [`Self::begin_node`].
    fn property_str(&mut self, name: &CStr, value: &CStr) -> Result<(), Self::Error> {
        self.property(name, value.to_bytes_with_nul())
    }
}
