// SPDX-License-Identifier: MIT OR Apache-2.0

//! Names of sessions.

use crate::uapi::SESSION_NAME_LENGTH;
use std::{
    ffi::OsStr,
    fmt::{
        self,
        Write, //
    },
    os::unix::ffi::OsStrExt,
    str::FromStr, //
};

/// The name of a session: 1 to 63 bytes without a NUL.
///
/// A name need not be text. [`Display`](fmt::Display) shows it so that it is safe on a terminal and
/// in a log, and that [`SessionName::unescape`] gets the same bytes back.
///
/// # Invariants
///
/// The field has at least one byte before its first NUL, which is there, and only NUL after it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionName([u8; SESSION_NAME_LENGTH]);

impl SessionName {
    /// The most bytes that a name can have.
    pub const MAX: usize = SESSION_NAME_LENGTH - 1;

    /// Makes a name of bytes.
    ///
    /// # Errors
    ///
    /// [`NameError`] says which rule they break.
    pub fn new(name: impl AsRef<[u8]>) -> Result<Self, NameError> {
        let name = name.as_ref();

        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() > Self::MAX {
            return Err(NameError::TooLong { len: name.len() });
        }
        if name.contains(&0) {
            return Err(NameError::Nul);
        }
        let mut field = [0; SESSION_NAME_LENGTH];
        field[..name.len()].copy_from_slice(name);
        // INVARIANT: The name is not empty, has no NUL, and is shorter than the field.
        Ok(Self(field))
    }

    /// Reads the field of a request as the kernel fills it in: what follows the NUL does not count.
    ///
    /// # Errors
    ///
    /// As [`Self::new`]; [`NameError::TooLong`] if there is no NUL.
    pub fn from_field(field: &[u8; SESSION_NAME_LENGTH]) -> Result<Self, NameError> {
        let end = field.iter().position(|&byte| byte == 0);

        Self::new(&field[..end.unwrap_or(field.len())])
    }

    /// The field of a request, padded with NUL.
    pub fn to_field(self) -> [u8; SESSION_NAME_LENGTH] {
        self.0
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        let end = self.0.iter().position(|&byte| byte == 0);
        &self.0[..end.unwrap_or(self.0.len())]
    }

    /// Reads a name as it is displayed, or as the kernel shows it in its log and in debugfs.
    ///
    /// # Errors
    ///
    /// [`NameError::Escape`] if a backslash is not followed by `xNN`, else as [`Self::new`].
    pub fn unescape(text: &str) -> Result<Self, NameError> {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();

        while let Some((&byte, tail)) = rest.split_first() {
            rest = tail;
            if byte != b'\\' {
                bytes.push(byte);
                continue;
            }
            let code = match tail {
                [b'x', high, low, ..] => hex(*high).zip(hex(*low)),
                _ => None,
            };
            let (high, low) = code.ok_or(NameError::Escape)?;
            bytes.push((high << 4) | low);
            rest = &tail[3..];
        }
        Self::new(bytes)
    }
}

/// The value of a hexadecimal digit.
fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16)?.try_into().ok()
}

impl AsRef<[u8]> for SessionName {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl FromStr for SessionName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl TryFrom<&OsStr> for SessionName {
    type Error = NameError;

    fn try_from(name: &OsStr) -> Result<Self, NameError> {
        Self::new(name.as_bytes())
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = String::new();

        for chunk in self.as_bytes().utf8_chunks() {
            for char in chunk.valid().chars() {
                // A control character may move the cursor, a backslash begins an escape.
                if char.is_control() || char == '\\' {
                    let mut bytes = [0; 4];
                    for byte in char.encode_utf8(&mut bytes).bytes() {
                        write!(shown, "\\x{byte:02x}")?;
                    }
                } else {
                    shown.push(char);
                }
            }
            for byte in chunk.invalid() {
                write!(shown, "\\x{byte:02x}")?;
            }
        }
        f.pad(&shown)
    }
}

impl fmt::Debug for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for SessionName {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Why bytes cannot be the name of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// There are none.
    Empty,
    /// There are more than 63.
    TooLong {
        /// How many there are.
        len: usize,
    },
    /// One of them is NUL.
    Nul,
    /// An escaped text has a backslash that is not followed by `xNN`.
    Escape,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a session's name must not be empty"),
            Self::TooLong { len } => write!(
                f,
                "a session's name has {} bytes at most, not {len}",
                SessionName::MAX
            ),
            Self::Nul => f.write_str("a session's name must not contain a NUL"),
            Self::Escape => f.write_str("a backslash in an escaped name is followed by xNN"),
        }
    }
}

impl std::error::Error for NameError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn limits() {
        let longest = [b'x'; 63];

        assert_eq!(SessionName::new("a").unwrap().as_bytes(), b"a");
        assert_eq!(SessionName::new(longest).unwrap().as_bytes(), longest);
        assert_eq!(SessionName::new(""), Err(NameError::Empty));
        assert_eq!(SessionName::new("a\0b"), Err(NameError::Nul));
        assert_eq!(
            SessionName::new([b'x'; 64]),
            Err(NameError::TooLong { len: 64 })
        );
        assert_eq!(
            SessionName::from_field(&[b'x'; 64]),
            Err(NameError::TooLong { len: 64 })
        );
    }

    #[test]
    fn shown() {
        let show = |name: &[u8]| SessionName::new(name).unwrap().to_string();

        assert_eq!(show(b"vm-0"), "vm-0");
        assert_eq!(show("größe".as_bytes()), "größe");
        assert_eq!(show(b"a\x1b[2Jb\n"), "a\\x1b[2Jb\\x0a");
        assert_eq!(show(b"\\"), "\\x5c");
        assert_eq!(show(b"\xff\xfe"), "\\xff\\xfe");
        assert_eq!(show("\u{9b}".as_bytes()), "\\xc2\\x9b");
        assert_eq!(format!("{:>4}", SessionName::new("a").unwrap()), "   a");
    }

    #[test]
    fn broken_escapes() {
        for text in ["\\", "\\x", "\\x1", "\\xg0", "\\n", "a\\x0"] {
            assert_eq!(SessionName::unescape(text), Err(NameError::Escape));
        }
        assert_eq!(SessionName::unescape("\\x00"), Err(NameError::Nul));
    }

    proptest! {
        #[test]
        fn every_name_comes_back(name in proptest::collection::vec(1..=u8::MAX, 1..=63)) {
            let name = SessionName::new(&name).unwrap();
            let shown = name.to_string();

            prop_assert!(!shown.chars().any(char::is_control));
            prop_assert_eq!(SessionName::unescape(&shown), Ok(name));
            prop_assert_eq!(SessionName::from_field(&name.to_field()), Ok(name));
        }
    }
}
