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
//!       luo-checks = <u64 ...: addresses of the pages of checks>;
//!       luo-crc32c = <u32: over all numbers here>;
//!       luo-reboot-stamp = <u64 u64 u64: see [`stamp`](super::stamp)>;
//!       luo-phase-times = <u64 u64: likewise>;
//!       luo-session {
//!           compatible = "luo-session-v2";
//!           luo-session-header = <u64: address of the first session block, or 0>;
//!           luo-session-count = <u64: number of sessions>;
//!           luo-session-checks = <u64: index of the first check of the sessions>;
//!       };
//!       luo-flb {
//!           compatible = "luo-flb-v1";
//!           luo-flb-header = <u64: address of the FLB page, or 0>;
//!           luo-flb-count = <u64: number of FLBs>;
//!           luo-flb-checks = <u64: index of the first check of the FLBs>;
//!       };
//!       luo-subsystems { see [`subsystem`](super::subsystem) };
//!   };
//!   ```
//!
//!   The numbers are in native byte order, unlike the rest of a device tree. Properties and nodes
//!   that are not in this list are skipped. Those of the [checks](super::check) are all there, or
//!   none of them; the checksum is over them and the addresses. Stamp, times and subsystems may
//!   be missing.
//!
//! - [`LuoSerV5`], the form of the C implementation in Linux 7.2 and 7.3.
//!
//! How a device tree is read and written is left to a [`Tree`] and a [`TreeBuilder`].

use core::{
    ffi::CStr,
    fmt,
    mem::size_of, //
};

use zerocopy::{
    FromBytes,
    IntoBytes, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

use super::{
    check::{
        Crc32c,
        Span, //
    },
    error::Excerpt,
    phys::Phys,
    stamp::{
        PhaseTimes,
        Stamp,
        STAMP_PROPERTY,
        TIMES_PROPERTY, //
    },
    subsystem::{
        self,
        Subsystem, //
    },
    tree::{
        Tree,
        TreeBuilder, //
    },
    BLOCK_SIZE, //
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

/// Property of the root node: addresses of the pages with checks.
pub const CHECKS_PROPERTY: &CStr = c"luo-checks";
/// Property of the root node: the checksum of all numbers of the root.
pub const CRC_PROPERTY: &CStr = c"luo-crc32c";
/// Property of the node of the sessions: how many there are.
pub const SESSION_COUNT_PROPERTY: &CStr = c"luo-session-count";
/// Property of the node of the sessions: index of their first check.
pub const SESSION_CHECKS_PROPERTY: &CStr = c"luo-session-checks";
/// Property of the node of the FLBs: how many there are.
pub const FLB_COUNT_PROPERTY: &CStr = c"luo-flb-count";
/// Property of the node of the FLBs: index of their first check.
pub const FLB_CHECKS_PROPERTY: &CStr = c"luo-flb-checks";

/// The most pages of checks that a root lists, so that the tree fits into a page. With subsystems
/// it may be fewer; then the tree's writer says that it is full.
pub const MAX_CHECK_PAGES: usize = 384;
const _: () = assert!(MAX_CHECK_PAGES * size_of::<u64>() + 1024 <= BLOCK_SIZE);

/// The property of every node that says what it is.
pub const COMPATIBLE_PROPERTY: &CStr = c"compatible";

/// First bytes of a flattened device tree.
const FDT_MAGIC: [u8; 4] = 0xd00d_feed_u32.to_be_bytes();

/// Compatible string of the C implementation's root.
pub const V5_NAME: &CStr = c"luo-v5";

/// The same as it stands there, padded.
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

/// What the root may carry besides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras<'a> {
    /// When the old kernel began to go.
    pub stamp: Option<Stamp>,
    /// How long its phases took.
    pub times: Option<PhaseTimes>,
    /// What subsystems hand over.
    pub subsystems: &'a [Subsystem],
}

/// What the root says about the checks, if there are any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootChecks<'a> {
    /// Of the sessions.
    pub sessions: Span,
    /// Of the FLBs.
    pub flbs: Span,
    /// Addresses of the pages with checks, in native byte order.
    pub pages: &'a [[u8; size_of::<u64>()]],
}

impl RootChecks<'_> {
    /// The checksum of all numbers of a root, in the order of their properties.
    fn checksum(&self, root: &Root, crc: Crc32c) -> u32 {
        let numbers = [
            root.number,
            Phys::raw(root.sessions),
            self.sessions.count,
            self.sessions.first,
            Phys::raw(root.flbs),
            self.flbs.count,
            self.flbs.first,
        ];
        let sum = numbers
            .iter()
            .fold(0, |sum, number| crc(sum, &number.to_ne_bytes()));
        crc(sum, self.pages.as_bytes())
    }

    /// The addresses of the pages with checks.
    pub fn addresses(&self) -> impl Iterator<Item = Option<Phys>> + '_ {
        self.pages
            .iter()
            .map(|raw| Phys::new(u64::from_ne_bytes(*raw)).filter(|at| at.page_aligned()))
    }
}

impl<'t> RootChecks<'t> {
    /// Reads out of a device tree what it says about checks of the root `root`, and verifies the
    /// root by it; [`None`] if it says nothing.
    ///
    /// # Errors
    ///
    /// [`RootError::Missing`] if it does not say all, [`RootError::Size`],
    /// [`RootError::Checksum`], and [`RootError::Total`] if there is a count without an address.
    pub fn from_tree(
        tree: &'t impl Tree,
        root: &Root,
        crc: Crc32c,
    ) -> Result<Option<Self>, RootError> {
        let properties = [
            (ROOT_PATH, CHECKS_PROPERTY),
            (ROOT_PATH, CRC_PROPERTY),
            (SESSION_PATH, SESSION_COUNT_PROPERTY),
            (SESSION_PATH, SESSION_CHECKS_PROPERTY),
            (FLB_PATH, FLB_COUNT_PROPERTY),
            (FLB_PATH, FLB_CHECKS_PROPERTY),
        ];
        if properties
            .iter()
            .all(|(node, property)| tree.property(node, property).is_none())
        {
            return Ok(None);
        }

        let pages = read(tree, ROOT_PATH, CHECKS_PROPERTY)?;
        let checks = Self {
            sessions: Span {
                count: read_u64(tree, SESSION_PATH, SESSION_COUNT_PROPERTY)?,
                first: read_u64(tree, SESSION_PATH, SESSION_CHECKS_PROPERTY)?,
            },
            flbs: Span {
                count: read_u64(tree, FLB_PATH, FLB_COUNT_PROPERTY)?,
                first: read_u64(tree, FLB_PATH, FLB_CHECKS_PROPERTY)?,
            },
            pages: <[[u8; size_of::<u64>()]]>::ref_from_bytes(pages).map_err(|_| {
                RootError::Size {
                    node: ROOT_PATH,
                    property: CHECKS_PROPERTY,
                    len: pages.len(),
                }
            })?,
        };

        let found = u32::from_ne_bytes(read_bytes(tree, ROOT_PATH, CRC_PROPERTY)?);
        let computed = checks.checksum(root, crc);
        if found != computed {
            return Err(RootError::Checksum { found, computed });
        }
        for (what, span, at) in [
            ("sessions", checks.sessions, root.sessions),
            ("FLBs", checks.flbs, root.flbs),
        ] {
            if span.count > 0 && at.is_none() {
                let count = span.count;
                return Err(RootError::Total { what, count });
            }
        }
        Ok(Some(checks))
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
    /// [`RootError::Missing`], [`RootError::Incompatible`], [`RootError::Size`] and
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

    /// Writes the root as a device tree, with what there is to say about checks, and what it
    /// carries besides.
    ///
    /// # Errors
    ///
    /// What the builder returned.
    pub fn write_tree<B: TreeBuilder>(
        &self,
        tree: &mut B,
        checks: Option<&RootChecks<'_>>,
        extras: &Extras<'_>,
        crc: Crc32c,
    ) -> Result<(), B::Error> {
        tree.begin_node(c"")?;
        tree.property_str(COMPATIBLE_PROPERTY, ROOT_COMPATIBLE)?;
        tree.property_u64(NUMBER_PROPERTY, self.number)?;
        if let Some(checks) = checks {
            tree.property(CHECKS_PROPERTY, checks.pages.as_bytes())?;
            tree.property(CRC_PROPERTY, &checks.checksum(self, crc).to_ne_bytes())?;
        }
        if let Some(stamp) = extras.stamp {
            tree.property(STAMP_PROPERTY, stamp.to_bytes().as_flattened())?;
        }
        if let Some(times) = extras.times {
            tree.property(TIMES_PROPERTY, times.to_bytes().as_flattened())?;
        }

        tree.begin_node(SESSION_NODE)?;
        tree.property_str(COMPATIBLE_PROPERTY, SESSION_COMPATIBLE)?;
        tree.property_u64(SESSION_PROPERTY, Phys::raw(self.sessions))?;
        if let Some(checks) = checks {
            tree.property_u64(SESSION_COUNT_PROPERTY, checks.sessions.count)?;
            tree.property_u64(SESSION_CHECKS_PROPERTY, checks.sessions.first)?;
        }
        tree.end_node()?;

        tree.begin_node(FLB_NODE)?;
        tree.property_str(COMPATIBLE_PROPERTY, FLB_COMPATIBLE)?;
        tree.property_u64(FLB_PROPERTY, Phys::raw(self.flbs))?;
        if let Some(checks) = checks {
            tree.property_u64(FLB_COUNT_PROPERTY, checks.flbs.count)?;
            tree.property_u64(FLB_CHECKS_PROPERTY, checks.flbs.first)?;
        }
        tree.end_node()?;
        subsystem::write(tree, extras.subsystems, crc)?;

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
    let found = read(tree, node, COMPATIBLE_PROPERTY)?;
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

fn read<'t>(
    tree: &'t impl Tree,
    node: &'static CStr,
    property: &'static CStr,
) -> Result<&'t [u8], RootError> {
    tree.property(node, property)
        .ok_or(RootError::Missing { node, property })
}

fn read_bytes<const N: usize>(
    tree: &impl Tree,
    node: &'static CStr,
    property: &'static CStr,
) -> Result<[u8; N], RootError> {
    let value = read(tree, node, property)?;
    value.try_into().map_err(|_| RootError::Size {
        node,
        property,
        len: value.len(),
    })
}

fn read_u64(
    tree: &impl Tree,
    node: &'static CStr,
    property: &'static CStr,
) -> Result<u64, RootError> {
    read_bytes(tree, node, property).map(u64::from_ne_bytes)
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
    /// A property is not as long as its numbers are.
    Size {
        /// Path of the node.
        node: &'static CStr,
        /// Name of the property.
        property: &'static CStr,
        /// Its length.
        len: usize,
    },
    /// The numbers are not those that were written.
    Checksum {
        /// The checksum that is there.
        found: u32,
        /// The one that should be there.
        computed: u32,
    },
    /// There is a number of things, but no address of them.
    Total {
        /// What is counted.
        what: &'static str,
        /// The number.
        count: u64,
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
            Self::Size {
                node,
                property,
                len,
            } => write!(
                f,
                "node {}: property {} has {len} bytes, which is wrong",
                Excerpt::new(node.to_bytes()),
                Excerpt::new(property.to_bytes()),
            ),
            Self::Checksum { found, computed } => write!(
                f,
                "root: checksum {found:#010x} does not match, {computed:#010x} would",
            ),
            Self::Total { what, count } => {
                write!(f, "root: count {count} but no address of {what}")
            }
            Self::Misaligned { what, at } => {
                write!(f, "address {at} of the {what} is not that of a page")
            }
        }
    }
}
