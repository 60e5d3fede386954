// SPDX-License-Identifier: GPL-2.0

//! The root: what KHO hands over under the name [`ENTRY_NAME`].
//!
//! Two forms of the same three numbers are understood, told apart by their first bytes:
//!
//! - A flattened device tree, the form of this implementation:
//!
//!   ```text
//!   / {
//!       compatible = "luo-v1";
//!       liveupdate-number = <u64>;
//!       luo-session {
//!           compatible = "luo-session-v2";
//!           luo-session-header = <u64: address of the first session block, or 0>;
//!       };
//!       luo-flb {
//!           compatible = "luo-flb-v1";
//!           luo-flb-header = <u64: address of the FLB page, or 0>;
//!       };
//!   };
//!   ```
//!
//!   The numbers are in native byte order, unlike the rest of a device tree. Properties and nodes
//!   that are not in this list are skipped.
//!
//! - [`LuoSerV5`], the form of the C implementation in Linux 7.2 and 7.3.
//!
//! How a device tree is read and written is left to a [`Tree`] and a [`TreeBuilder`], since the
//! kernel has libfdt for that and the host other libraries.

use core::{
    ffi::CStr,
    fmt, //
};

use zerocopy::FromBytes;
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

use super::{
    error::Excerpt,
    phys::Phys, //
};

/// The name under which KHO carries the root.
pub const ENTRY_NAME: &CStr = c"LUO";

/// Path of the root node, whose name is empty.
pub const ROOT_PATH: &CStr = c"/";
/// Compatible string of the root node.
pub const ROOT_COMPATIBLE: &CStr = c"luo-v1";
/// Property of the root node: how many live updates the machine has seen.
pub const NUMBER_PROPERTY: &CStr = c"liveupdate-number";

/// Name of the node of the sessions.
pub const SESSION_NODE: &CStr = c"luo-session";
/// Path of the node of the sessions.
pub const SESSION_PATH: &CStr = c"/luo-session";
/// Compatible string of the node of the sessions.
pub const SESSION_COMPATIBLE: &CStr = c"luo-session-v2";
/// Property of the node of the sessions: address of the first block.
pub const SESSION_PROPERTY: &CStr = c"luo-session-header";

/// Name of the node of the FLBs.
pub const FLB_NODE: &CStr = c"luo-flb";
/// Path of the node of the FLBs.
pub const FLB_PATH: &CStr = c"/luo-flb";
/// Compatible string of the node of the FLBs.
pub const FLB_COMPATIBLE: &CStr = c"luo-flb-v1";
/// Property of the node of the FLBs: address of the page.
pub const FLB_PROPERTY: &CStr = c"luo-flb-header";

/// The property of every node that says what it is.
pub const COMPATIBLE_PROPERTY: &CStr = c"compatible";

/// First bytes of a flattened device tree.
const FDT_MAGIC: [u8; 4] = 0xd00d_feed_u32.to_be_bytes();

/// Compatible string of the C implementation's root, padded.
const V5_COMPATIBLE: [u8; 8] = *b"luo-v5\0\0";

/// First bytes of the C implementation's root: its compatible string with the NUL.
const V5_MAGIC: &[u8] = b"luo-v5\0";

/// The root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// How many live updates the machine has seen, the one that carries this root included.
    pub number: u64,
    /// The first block of sessions.
    pub sessions: Option<Phys>,
    /// The page of FLBs.
    pub flbs: Option<Phys>,
}

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

/// The root as the C implementation has it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LuoSerV5 {
    compatible: [u8; 8],
    liveupdate_num: u64,
    sessions_pa: u64,
    flbs_pa: u64,
}

/// The form of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootFormat {
    /// A flattened device tree.
    Fdt,
    /// [`LuoSerV5`].
    V5,
}

impl RootFormat {
    /// Tells by the first bytes what follows, [`None`] if they are nothing known.
    pub fn detect(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(&FDT_MAGIC) {
            Some(Self::Fdt)
        } else if bytes.starts_with(V5_MAGIC) {
            Some(Self::V5)
        } else {
            None
        }
    }

    /// As [`Self::detect`], with an error that shows what was found.
    ///
    /// # Errors
    ///
    /// [`RootError::UnknownFormat`].
    pub fn expect_known(bytes: &[u8]) -> Result<Self, RootError> {
        Self::detect(bytes).ok_or_else(|| RootError::UnknownFormat {
            found: Excerpt::new(bytes.get(..V5_COMPATIBLE.len()).unwrap_or(bytes)),
        })
    }
}

impl Root {
    /// Reads a root out of a device tree.
    ///
    /// # Errors
    ///
    /// [`RootError::Missing`], [`RootError::Incompatible`], [`RootError::NotU64`] and
    /// [`RootError::Misaligned`].
    pub fn from_tree(tree: &impl Tree) -> Result<Self, RootError> {
        check_compatible(tree, ROOT_PATH, ROOT_COMPATIBLE)?;
        check_compatible(tree, SESSION_PATH, SESSION_COMPATIBLE)?;
        check_compatible(tree, FLB_PATH, FLB_COMPATIBLE)?;
        Self::from_numbers(
            read_u64(tree, ROOT_PATH, NUMBER_PROPERTY)?,
            read_u64(tree, SESSION_PATH, SESSION_PROPERTY)?,
            read_u64(tree, FLB_PATH, FLB_PROPERTY)?,
        )
    }

    /// Writes the root as a device tree.
    ///
    /// # Errors
    ///
    /// What the builder returned.
    pub fn write_tree<B: TreeBuilder>(&self, tree: &mut B) -> Result<(), B::Error> {
        tree.begin_node(c"")?;
        tree.property_str(COMPATIBLE_PROPERTY, ROOT_COMPATIBLE)?;
        tree.property_u64(NUMBER_PROPERTY, self.number)?;

        tree.begin_node(SESSION_NODE)?;
        tree.property_str(COMPATIBLE_PROPERTY, SESSION_COMPATIBLE)?;
        tree.property_u64(SESSION_PROPERTY, Phys::raw(self.sessions))?;
        tree.end_node()?;

        tree.begin_node(FLB_NODE)?;
        tree.property_str(COMPATIBLE_PROPERTY, FLB_COMPATIBLE)?;
        tree.property_u64(FLB_PROPERTY, Phys::raw(self.flbs))?;
        tree.end_node()?;

        tree.end_node()
    }

    /// Reads a root of the C implementation at the beginning of `bytes`.
    ///
    /// # Errors
    ///
    /// [`RootError::TooShort`], [`RootError::UnknownFormat`] and [`RootError::Misaligned`].
    pub fn from_v5(bytes: &[u8]) -> Result<Self, RootError> {
        let (ser, _) = LuoSerV5::read_from_prefix(bytes)
            .map_err(|_| RootError::TooShort { len: bytes.len() })?;
        if !ser.compatible.starts_with(V5_MAGIC) {
            return Err(RootError::UnknownFormat {
                found: Excerpt::new(&ser.compatible),
            });
        }
        Self::from_numbers(ser.liveupdate_num, ser.sessions_pa, ser.flbs_pa)
    }

    /// The root as the C implementation has it.
    pub fn to_v5(self) -> LuoSerV5 {
        LuoSerV5 {
            compatible: V5_COMPATIBLE,
            liveupdate_num: self.number,
            sessions_pa: Phys::raw(self.sessions),
            flbs_pa: Phys::raw(self.flbs),
        }
    }

    fn from_numbers(number: u64, sessions: u64, flbs: u64) -> Result<Self, RootError> {
        Ok(Self {
            number,
            sessions: page_address("sessions", sessions)?,
            flbs: page_address("FLBs", flbs)?,
        })
    }
}

fn check_compatible(
    tree: &impl Tree,
    node: &'static CStr,
    expected: &'static CStr,
) -> Result<(), RootError> {
    let found = tree
        .property(node, COMPATIBLE_PROPERTY)
        .ok_or(RootError::Missing {
            node,
            property: COMPATIBLE_PROPERTY,
        })?;
    if found == expected.to_bytes_with_nul() {
        Ok(())
    } else {
        Err(RootError::Incompatible {
            node,
            expected,
            found: Excerpt::new(found),
        })
    }
}

fn read_u64(
    tree: &impl Tree,
    node: &'static CStr,
    property: &'static CStr,
) -> Result<u64, RootError> {
    let value = tree
        .property(node, property)
        .ok_or(RootError::Missing { node, property })?;
    let bytes = value.try_into().map_err(|_| RootError::NotU64 {
        node,
        property,
        len: value.len(),
    })?;
    Ok(u64::from_ne_bytes(bytes))
}

fn page_address(what: &'static str, raw: u64) -> Result<Option<Phys>, RootError> {
    match Phys::new(raw) {
        Some(at) if !at.page_aligned() => Err(RootError::Misaligned { what, at }),
        at => Ok(at),
    }
}

/// Why a root is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootError {
    /// Neither a device tree nor the C implementation's root of a known version.
    UnknownFormat {
        /// The first bytes.
        found: Excerpt,
    },
    /// The C implementation's root is not complete.
    TooShort {
        /// How many bytes there are.
        len: usize,
    },
    /// A property, or its node, is missing.
    Missing {
        /// Path of the node.
        node: &'static CStr,
        /// Name of the property.
        property: &'static CStr,
    },
    /// A node is of another kind or version.
    Incompatible {
        /// Path of the node.
        node: &'static CStr,
        /// The compatible string that is understood.
        expected: &'static CStr,
        /// The compatible string that is there.
        found: Excerpt,
    },
    /// A property is not eight bytes long.
    NotU64 {
        /// Path of the node.
        node: &'static CStr,
        /// Name of the property.
        property: &'static CStr,
        /// Its length.
        len: usize,
    },
    /// An address is not that of a page.
    Misaligned {
        /// What should be there.
        what: &'static str,
        /// The address.
        at: Phys,
    },
}

impl fmt::Display for RootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownFormat { found } => write!(f, "root of unknown format \"{found}\""),
            Self::TooShort { len } => write!(f, "root has only {len} bytes"),
            Self::Missing { node, property } => write!(
                f,
                "node {}: no property {}",
                Excerpt::new(node.to_bytes()),
                Excerpt::new(property.to_bytes()),
            ),
            Self::Incompatible {
                node,
                expected,
                found,
            } => write!(
                f,
                "node {}: compatible with \"{found}\", not with \"{}\"",
                Excerpt::new(node.to_bytes()),
                Excerpt::new(expected.to_bytes()),
            ),
            Self::NotU64 {
                node,
                property,
                len,
            } => write!(
                f,
                "node {}: property {} has {len} bytes, not 8",
                Excerpt::new(node.to_bytes()),
                Excerpt::new(property.to_bytes()),
            ),
            Self::Misaligned { what, at } => {
                write!(f, "address {at} of the {what} is not that of a page")
            }
        }
    }
}
