// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tokens.

use std::{
    fmt,
    num::ParseIntError,
    str::FromStr, //
};

/// The number under which a file is preserved in a session. Any number is good.
///
/// It is shown as the kernel shows it (`0x1f`), and read in decimal or, after `0x`, in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
pub struct Token(pub u64);

impl From<u64> for Token {
    fn from(token: u64) -> Self {
        Self(token)
    }
}

impl From<Token> for u64 {
    fn from(token: Token) -> Self {
        token.0
    }
}

impl FromStr for Token {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        match text.strip_prefix("0x") {
            // The parser itself would take a sign here.
            Some(hex) if !hex.starts_with('+') => u64::from_str_radix(hex, 16),
            Some(_) => u64::from_str("0x"),
            None => text.parse(),
        }
        .map(Self)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:#x}", self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read() {
        let read = |text: &str| Token::from_str(text).ok().map(u64::from);

        assert_eq!(read("7"), Some(7));
        assert_eq!(read("0x1f"), Some(0x1f));
        assert_eq!(read("0xffffffffffffffff"), Some(u64::MAX));
        assert_eq!(read("18446744073709551616"), None);
        for text in ["", "x", "-1", "0x", "0x+1", "0x-1", "1 "] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn shown() {
        assert_eq!(Token(31).to_string(), "0x1f");
    }
}
