// SPDX-License-Identifier: GPL-2.0

//! Bounded, NUL-terminated strings in fields of fixed size.
//!
//! Session names and compatible strings. A field of the previous kernel need not end, nor hold
//! text; a [`Name`] does end, and its bytes are only ever shown escaped.

use core::{
    ffi::CStr,
    fmt, //
};

use super::error::escape;

/// Size of the field of a session's name, terminating NUL included.
pub const SESSION_NAME_LEN: usize = 64;

/// Size of the field of a compatible string, terminating NUL included.
pub const COMPATIBLE_LEN: usize = 48;

/// A non-empty string in a field of `N` bytes.
///
/// Two names are equal if their text is; the order is that of the bytes.
///
/// # Invariants
///
/// The first byte is not NUL, there is a NUL, and all bytes after the first NUL are NUL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name<const N: usize> {
    bytes: [u8; N],
}

/// The name of a session.
pub type SessionName = Name<SESSION_NAME_LEN>;

/// The string by which a file or an FLB finds its handler in the next kernel.
pub type Compatible = Name<COMPATIBLE_LEN>;

impl<const N: usize> Name<N> {
    /// Takes the name out of a field. What follows the first NUL is not looked at.
    ///
    /// # Errors
    ///
    /// [`NameError::Empty`] and [`NameError::Unterminated`].
    pub fn from_bytes(field: &[u8; N]) -> Result<Self, NameError> {
        let len = field
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(NameError::Unterminated)?;
        Self::without_nul(field.get(..len).unwrap_or_default())
    }

    /// Makes a name of text that has neither a NUL nor padding.
    ///
    /// # Errors
    ///
    /// [`NameError::Empty`], [`NameError::TooLong`] if no place remains for the NUL, and
    /// [`NameError::EmbeddedNul`].
    pub fn from_str_bytes(text: &[u8]) -> Result<Self, NameError> {
        match Self::without_nul(text) {
            Ok(_) if text.contains(&0) => Err(NameError::EmbeddedNul),
            result => result,
        }
    }

    /// Makes a name of text of which it is known that it has no NUL.
    fn without_nul(text: &[u8]) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() >= N {
            return Err(NameError::TooLong {
                len: text.len(),
                max: N.saturating_sub(1),
            });
        }
        let mut bytes = [0; N];
        for (to, from) in bytes.iter_mut().zip(text) {
            *to = *from;
        }
        // INVARIANT: `text` is not empty, has no NUL and is shorter than `N`, so a NUL follows it
        // and all that follows it is NUL.
        Ok(Self { bytes })
    }

    /// Makes a name of a C string.
    ///
    /// # Errors
    ///
    /// [`NameError::Empty`] and [`NameError::TooLong`].
    pub fn from_cstr(text: &CStr) -> Result<Self, NameError> {
        Self::without_nul(text.to_bytes())
    }

    /// The text, without the NUL.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default()
    }

    /// The text as a C string.
    pub fn as_cstr(&self) -> &CStr {
        // The invariant excludes the error.
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }

    /// The whole field, padded with NUL.
    pub const fn to_bytes_padded(self) -> [u8; N] {
        self.bytes
    }
}

impl<const N: usize> fmt::Display for Name<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(f, self.as_bytes())
    }
}

impl<const N: usize> fmt::Debug for Name<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Why bytes are no [`Name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// There is no text.
    Empty,
    /// The field is full and has no NUL.
    Unterminated,
    /// The text does not fit into the field.
    TooLong {
        /// Length of the text.
        len: usize,
        /// Length that fits.
        max: usize,
    },
    /// There is a NUL inside the text.
    EmbeddedNul,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("name is empty"),
            Self::Unterminated => f.write_str("name has no end"),
            Self::TooLong { len, max } => {
                write!(f, "name of {len} bytes is longer than {max}")
            }
            Self::EmbeddedNul => f.write_str("name has a NUL inside"),
        }
    }
}
