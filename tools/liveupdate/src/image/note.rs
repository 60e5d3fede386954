// SPDX-License-Identifier: MIT OR Apache-2.0

//! The notes by which a kernel image says what it reads.
//!
//! Each is an ELF note in the section `.note.liveupdate`, which the kernel's linker puts into
//! `.notes`, a part of the kernel that is in every kind of image:
//!
//! | field | content |
//! |---|---|
//! | owner | `LiveUpdate` |
//! | type | 1 |
//! | descriptor | a line of text without its end, padded with NUL: a [kind](super::FormatKind), a blank, and a name |
//!
//! For instance `root luo-v1`, `handler memfd-extents-v3`, `default kho=on`. They are found by their
//! first bytes, so that they need no section table, which a flat image does not have. A driver that
//! is built in adds its own note; what modules bring is in the modules.

use super::Format;
use memchr::memmem;

/// The owner of the notes.
pub const OWNER: &str = "LiveUpdate";

/// Their type.
pub const TYPE: u32 = 1;

/// The owner as it stands in a note: ended by a NUL, and padded.
const OWNER_FIELD: &[u8; 12] = b"LiveUpdate\0\0";

/// The most bytes of a descriptor that is believed.
const MAX_TEXT: usize = 256;

/// Finds all notes.
pub(super) fn find(kernel: &[u8]) -> Vec<Format> {
    let starts = memmem::find_iter(kernel, OWNER_FIELD);

    starts.filter_map(|owner| at(kernel, owner)).collect()
}

/// Reads the note whose owner stands at `owner`.
fn at(kernel: &[u8], owner: usize) -> Option<Format> {
    let header = kernel.get(owner.checked_sub(12)?..owner)?;
    let word = |number: usize| {
        let bytes = header.get(number * 4..)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    let (owner_len, len, kind) = (word(0)?, word(1)?, word(2)?);
    if owner_len != OWNER.len() + 1 || kind != TYPE as usize || len > MAX_TEXT {
        return None;
    }
    let text = kernel.get(owner + OWNER_FIELD.len()..)?.get(..len)?;
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(len);

    Format::parse(std::str::from_utf8(&text[..end]).ok()?)
}

/// Makes a note, as the kernel's linker would place it.
#[cfg(test)]
pub(super) fn make(text: &str) -> Vec<u8> {
    let mut note = Vec::new();
    note.extend((OWNER.len() as u32 + 1).to_le_bytes());
    note.extend((text.len() as u32).to_le_bytes());
    note.extend(TYPE.to_le_bytes());
    note.extend(OWNER_FIELD);
    note.extend(text.as_bytes());
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(kernel: &[u8]) -> Vec<String> {
        find(kernel).iter().map(Format::to_string).collect()
    }

    #[test]
    fn among_others() {
        let mut kernel = vec![1; 4097];
        kernel.extend(make("root luo-v1"));
        kernel.extend(b"LiveUpdate\0\0 as a mere string");
        kernel.extend(make("handler memfd-small-v3"));
        kernel.extend(make("default kho=on"));
        kernel.extend(make("something new-v1"));
        kernel.extend(make("handler with\ncontrol"));

        assert_eq!(
            found(&kernel),
            ["root luo-v1", "handler memfd-small-v3", "default kho=on"]
        );
    }

    #[test]
    fn cut_off() {
        let note = make("root luo-v1");
        for len in 0..note.len() - 1 {
            assert!(found(&note[..len]).is_empty());
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), at in 0..64_usize) {
            let mut kernel = bytes;
            let at = at.min(kernel.len());
            kernel.splice(at..at, *OWNER_FIELD);
            find(&kernel);
        }
    }
}
