// SPDX-License-Identifier: GPL-2.0

//! Device trees, through libraries that others wrote. Not part of `common`, as the fuzz target does
//! without these libraries.

use std::ffi::CStr;

use luo_abi::tree::{
    Tree,
    TreeBuilder, //
};

/// Writes a device tree.
pub(crate) struct Writer {
    fdt: vm_fdt::FdtWriter,
    open: Vec<vm_fdt::FdtWriterNode>,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self {
            fdt: vm_fdt::FdtWriter::new().unwrap(),
            open: Vec::new(),
        }
    }

    /// The tree, all of whose nodes have ended.
    pub(crate) fn finish(self) -> Vec<u8> {
        assert!(self.open.is_empty());
        self.fdt.finish().unwrap()
    }
}

impl TreeBuilder for Writer {
    type Error = vm_fdt::Error;

    fn begin_node(&mut self, name: &CStr) -> Result<(), vm_fdt::Error> {
        let node = self.fdt.begin_node(name.to_str().unwrap())?;
        self.open.push(node);
        Ok(())
    }

    fn end_node(&mut self) -> Result<(), vm_fdt::Error> {
        self.fdt.end_node(self.open.pop().unwrap())
    }

    fn property(&mut self, name: &CStr, value: &[u8]) -> Result<(), vm_fdt::Error> {
        self.fdt.property(name.to_str().unwrap(), value)
    }
}

/// Reads a device tree.
pub(crate) struct Reader<'a>(pub(crate) fdt::Fdt<'a>);

impl Tree for Reader<'_> {
    fn property(&self, node: &CStr, name: &CStr) -> Option<&[u8]> {
        let node = self.0.find_node(node.to_str().unwrap())?;
        Some(node.property(name.to_str().unwrap())?.value)
    }
}
