// SPDX-License-Identifier: GPL-2.0

//! What subsystems hand over: a node of the root, with one number for each.
//!
//! ```text
//! luo-subsystems {
//!     compatible = "luo-subsystems-v1";
//!     luo-subsystem-names = "one-v1", "other-v3";
//!     one-v1 = <u64>;
//!     other-v3 = <u64>;
//!     luo-crc32c = <u32: over the names, then over the numbers in their order>;
//! };
//! ```
//!
//! The node is not there if there are no subsystems. A number means what the subsystem of that
//! compatible string makes of it. Corruption costs the subsystems, and nothing else.

use core::{
    ffi::CStr,
    fmt,
    mem::size_of, //
};

use super::{
    check::Crc32c,
    error::Excerpt,
    name::{
        Compatible,
        NameError, //
    },
    root::{
        COMPATIBLE_PROPERTY,
        CRC_PROPERTY, //
    },
    tree::{
        Tree,
        TreeBuilder, //
    }, //
};

/// Name of the node.
pub const SUBSYSTEM_NODE: &CStr = c"luo-subsystems";
/// Path of the node.
pub const SUBSYSTEM_PATH: &CStr = c"/luo-subsystems";
/// Compatible string of the node.
pub const SUBSYSTEM_COMPATIBLE: &CStr = c"luo-subsystems-v1";
/// Property of the node: the names of all subsystems, each with its NUL.
pub const NAMES_PROPERTY: &CStr = c"luo-subsystem-names";

/// How many subsystems there may be, so that all of them fit into the root.
pub const MAX_SUBSYSTEMS: usize = 16;

/// What one subsystem hands over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subsystem {
    /// Its compatible string.
    pub name: Compatible,
    /// What it said.
    pub data: u64,
}

/// Whether a subsystem may be called so: not like a property that means something else.
pub fn may_be_called(name: &Compatible) -> bool {
    [COMPATIBLE_PROPERTY, NAMES_PROPERTY, CRC_PROPERTY]
        .iter()
        .all(|taken| taken.to_bytes() != name.as_bytes())
}

/// Writes the node, if there is anything to say.
///
/// # Errors
///
/// What the builder returned.
pub fn write<B: TreeBuilder>(
    tree: &mut B,
    subsystems: &[Subsystem],
    crc: Crc32c,
) -> Result<(), B::Error> {
    if subsystems.is_empty() {
        return Ok(());
    }

    let mut names = [0; NAMES_LEN];
    let mut places = names.iter_mut();
    for subsystem in subsystems.iter().take(MAX_SUBSYSTEMS) {
        // In this order no place is lost at the end of a name.
        let name = subsystem.name.as_cstr().to_bytes_with_nul();
        for (from, to) in name.iter().zip(&mut places) {
            *to = *from;
        }
    }
    let left = places.len();
    let names = names
        .get(..NAMES_LEN.saturating_sub(left))
        .unwrap_or_default();
    let mut sum = crc(0, names);

    tree.begin_node(SUBSYSTEM_NODE)?;
    tree.property_str(COMPATIBLE_PROPERTY, SUBSYSTEM_COMPATIBLE)?;
    tree.property(NAMES_PROPERTY, names)?;
    for subsystem in subsystems.iter().take(MAX_SUBSYSTEMS) {
        tree.property_u64(subsystem.name.as_cstr(), subsystem.data)?;
        sum = crc(sum, &subsystem.data.to_ne_bytes());
    }
    tree.property(CRC_PROPERTY, &sum.to_ne_bytes())?;
    tree.end_node()
}

/// The most bytes that the names can have.
const NAMES_LEN: usize = MAX_SUBSYSTEMS * super::name::COMPATIBLE_LEN;

/// What was handed over, as far as it fits.
#[derive(Clone, Copy)]
pub struct Subsystems {
    all: [Option<Subsystem>; MAX_SUBSYSTEMS],
}

impl Subsystems {
    /// Nothing.
    pub const NONE: Self = Self {
        all: [None; MAX_SUBSYSTEMS],
    };

    /// Reads the node. Without one there are none.
    ///
    /// # Errors
    ///
    /// [`SubsystemError`], if something is wrong with any of it.
    pub fn from_tree(tree: &impl Tree, crc: Crc32c) -> Result<Self, SubsystemError> {
        let Some(compatible) = tree.property(SUBSYSTEM_PATH, COMPATIBLE_PROPERTY) else {
            return Ok(Self::NONE);
        };
        if compatible != SUBSYSTEM_COMPATIBLE.to_bytes_with_nul() {
            return Err(SubsystemError::Incompatible {
                found: Excerpt::new(compatible),
            });
        }
        let names = tree
            .property(SUBSYSTEM_PATH, NAMES_PROPERTY)
            .ok_or(SubsystemError::NoNames)?;
        let text = names.strip_suffix(&[0]).ok_or(SubsystemError::NoNames)?;

        let mut found = Self::NONE;
        let mut places = found.all.iter_mut();
        let mut sum = crc(0, names);
        for (index, name) in text.split(|byte| *byte == 0).enumerate() {
            let bad = |error| SubsystemError::Name { index, error };
            let name = Compatible::from_str_bytes(name).map_err(bad)?;
            let data: [u8; size_of::<u64>()] = tree
                .property(SUBSYSTEM_PATH, name.as_cstr())
                .and_then(|data| data.try_into().ok())
                .ok_or(SubsystemError::NoNumber { name })?;

            sum = crc(sum, &data);
            *places.next().ok_or(SubsystemError::TooMany)? = Some(Subsystem {
                name,
                data: u64::from_ne_bytes(data),
            });
        }

        let kept = tree
            .property(SUBSYSTEM_PATH, CRC_PROPERTY)
            .and_then(|kept| kept.try_into().ok())
            .map(u32::from_ne_bytes);
        if kept != Some(sum) {
            return Err(SubsystemError::Checksum);
        }
        Ok(found)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Subsystem> {
        self.all.iter().flatten()
    }

    /// Takes that of a name out; [`None`] if there is none, or it was taken.
    pub fn take(&mut self, name: &Compatible) -> Option<Subsystem> {
        self.all
            .iter_mut()
            .find(|place| place.is_some_and(|there| there.name == *name))
            .and_then(Option::take)
    }
}

/// Why what subsystems handed over is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubsystemError {
    /// The node is of another version.
    Incompatible {
        /// Its compatible string.
        found: Excerpt,
    },
    /// There is no list of names, or it does not end.
    NoNames,
    /// A name is none.
    Name {
        /// Which one.
        index: usize,
        /// What is wrong with it.
        error: NameError,
    },
    /// There is no number for a name.
    NoNumber {
        /// The name.
        name: Compatible,
    },
    /// There are more than fit.
    TooMany,
    /// The names and numbers are not those that were written.
    Checksum,
}

impl fmt::Display for SubsystemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("subsystems: ")?;
        match self {
            Self::Incompatible { found } => write!(f, "unknown version \"{found}\""),
            Self::NoNames => f.write_str("no list of names"),
            Self::Name { index, error } => write!(f, "name {index}: {error}"),
            Self::NoNumber { name } => write!(f, "no number for \"{name}\""),
            Self::TooMany => write!(f, "more than {MAX_SUBSYSTEMS}"),
            Self::Checksum => f.write_str("checksum does not match"),
        }
    }
}
