// SPDX-License-Identifier: GPL-2.0

//! What the error types of this module have in common.
//!
//! Each parser has its own small error type beside it. All of them are values without a lifetime
//! and without an allocation, and say on [`Display`](core::fmt::Display) what was wrong and where,
//! in a text of bounded length whatever the input was.

use core::{
    error::Error,
    fmt::{
        self,
        Write, //
    }, //
};

/// How many foreign bytes an [`Excerpt`] keeps.
const EXCERPT_LEN: usize = 32;

/// The first bytes of something foreign, kept to be shown in a message.
///
/// Printable ASCII stands for itself, any other byte is shown as `\xNN`. What was cut off is
/// marked by `...`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Excerpt {
    bytes: [u8; EXCERPT_LEN],
    len: usize,
    cut: bool,
}

impl Excerpt {
    /// Keeps the beginning of `bytes`, up to the first NUL.
    pub fn new(bytes: &[u8]) -> Self {
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        let mut kept = [0; EXCERPT_LEN];
        for (to, from) in kept.iter_mut().zip(text) {
            *to = *from;
        }
        Self {
            bytes: kept,
            len: text.len().min(EXCERPT_LEN),
            cut: text.len() > EXCERPT_LEN,
        }
    }

    /// The bytes that were kept.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(f, self.as_bytes())?;
        if self.cut {
            f.write_str("...")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Writes foreign bytes so that they can do no harm in a log.
///
/// The result has no control characters, and at most four characters for a byte. Quotes and
/// backslashes are escaped, so that the end of a quoted text is where it seems to be.
pub(super) fn escape(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for byte in bytes {
        match byte {
            b'"' | b'\\' => write!(f, "\\x{byte:02x}")?,
            b' '..=b'~' => f.write_char(char::from(*byte))?,
            _ => write!(f, "\\x{byte:02x}")?,
        }
    }
    Ok(())
}

/// Implements [`Error`] for types whose message says everything.
macro_rules! plain_errors {
    ($($type:ty),* $(,)?) => {
        $(impl Error for $type {})*
    };
}

plain_errors!(
    super::block::BlockError,
    super::block::Full,
    super::flb::FlbError,
    super::memfd::FolioError,
    super::memfd::MemfdError,
    super::memfd::Overlap,
    super::memfd::ExtentError,
    super::name::NameError,
    super::root::RootError,
    super::session::RecordError,
    super::subsystem::SubsystemError,
    super::vmalloc::VmallocError,
);
