// SPDX-License-Identifier: GPL-2.0

//! The format of this implementation: a device tree.

use kernel::{
    crc32c::crc32c,
    fdt::FdtWriter,
    prelude::*, //
};

use super::Format;
use crate::abi::{
    root::{
        Extras,
        RootChecks, //
    },
    tree::TreeBuilder,
    Root, //
};

pub(super) static FORMAT: Format = Format {
    name: "fdt",
    max_blocks: usize::MAX,
    has_checksums: true,
    has_subsystems: true,
    needs_flbs: false,
    write_root,
};

fn write_root(
    page: &mut [u8],
    root: &Root,
    checks: Option<&RootChecks<'_>>,
    extras: &Extras<'_>,
) -> Result {
    let mut tree = FdtWriter::new(page)?;

    root.write_tree(&mut tree, checks, extras, crc32c)?;
    tree.finish()
}

impl TreeBuilder for FdtWriter<'_> {
    type Error = Error;

    fn begin_node(&mut self, name: &CStr) -> Result {
        FdtWriter::begin_node(self, name)
    }

    fn end_node(&mut self) -> Result {
        FdtWriter::end_node(self)
    }

    fn property(&mut self, name: &CStr, value: &[u8]) -> Result {
        FdtWriter::property(self, name, value)
    }
}
