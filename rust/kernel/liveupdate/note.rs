// SPDX-License-Identifier: GPL-2.0

//! Notes in the kernel image that say which live-update formats it reads.
//!
//! Each is an ELF note of the owner `LiveUpdate`, type 1, with a line of text: a kind and a name,
//! such as `handler memfd-extents-v3`. So a tool that has an image, also a compressed one, knows
//! without running it what it can take over. In C: `LIVEUPDATE_NOTE()`.
//!
//! C header: [`include/linux/liveupdate_note.h`](srctree/include/linux/liveupdate_note.h).

use core::{
    mem::size_of,
    slice, //
};

use crate::prelude::*;

/// The owner, ended by a NUL and padded.
const OWNER: [u8; 12] = *b"LiveUpdate\0\0";

/// The length of the owner with its NUL.
const OWNER_LEN: u32 = 11;

/// Room for a kind, a blank, and a compatible string.
const TEXT_LEN: usize = 64;

/// The length of what stands before the owner.
const HEADER_LEN: usize = 3 * size_of::<u32>();

/// A note, as `struct elf_note` and what follows it.
#[doc(hidden)]
#[repr(C)]
pub struct Note {
    owner_len: u32,
    text_len: u32,
    kind: u32,
    owner: [u8; OWNER.len()],
    text: [u8; TEXT_LEN],
}

impl Note {
    /// Makes a note. Used in constants only, where a name that is too long does not compile.
    pub const fn new(kind: &str, name: &CStr) -> Self {
        let (kind, name) = (kind.as_bytes(), name.to_bytes());
        let mut text = [0; TEXT_LEN];
        let mut len = 0;

        while len < kind.len() {
            text[len] = kind[len];
            len += 1;
        }
        text[len] = b' ';
        len += 1;
        let mut at = 0;
        while at < name.len() {
            text[len + at] = name[at];
            at += 1;
        }
        Self {
            owner_len: OWNER_LEN,
            text_len: TEXT_LEN as u32,
            kind: 1,
            owner: OWNER,
            text,
        }
    }
}

/// Says that the kernel image reads a format.
///
/// The kind is `root`, `record`, `handler`, `flb` or `subsystem`; the name, a constant `&CStr`, is
/// the compatible string. In a module it says so of the module.
///
/// # Examples
///
/// ```ignore
/// const COMPATIBLE: &CStr = c"example-reads-v1";
///
/// kernel::liveupdate_note!("handler", COMPATIBLE);
/// ```
#[macro_export]
macro_rules! liveupdate_note {
    ($kind:literal, $name:expr) => {
        const _: () = {
            #[link_section = ".note.liveupdate"]
            #[used(compiler)]
            static NOTE: $crate::liveupdate::note::Note =
                $crate::liveupdate::note::Note::new($kind, $name);
        };
    };
}

/// All notes of the kernel image.
fn image_notes() -> &'static [u8] {
    extern "C" {
        static __start_notes: u8;
        static __stop_notes: u8;
    }

    let (start, stop) = (&raw const __start_notes, &raw const __stop_notes);
    let len = stop.addr().wrapping_sub(start.addr());
    // SAFETY: The linker defines the symbols as the bounds of the section `.notes`, which is part
    // of the kernel's read-only data and never freed.
    unsafe { slice::from_raw_parts(start, len) }
}

/// Calls `tell` with the text of each live-update note of the kernel image.
///
/// # Errors
///
/// What `tell` returned, which ends the walk.
pub fn for_each(mut tell: impl FnMut(&[u8]) -> Result) -> Result {
    let mut rest = image_notes();

    while let Some((header, behind)) = rest.split_at_checked(HEADER_LEN) {
        let word = |at: usize| {
            let bytes = header.get(at..)?.first_chunk()?;
            usize::try_from(u32::from_ne_bytes(*bytes)).ok()
        };
        let (Some(owner_len), Some(text_len), Some(kind)) = (word(0), word(4), word(8)) else {
            break;
        };
        let Some((owner, behind)) = behind.split_at_checked(owner_len.next_multiple_of(4)) else {
            break;
        };
        let Some((text, behind)) = behind.split_at_checked(text_len.next_multiple_of(4)) else {
            break;
        };
        if owner == OWNER && kind == 1 {
            tell(text.split(|byte| *byte == 0).next().unwrap_or_default())?;
        }
        rest = behind;
    }
    Ok(())
}
