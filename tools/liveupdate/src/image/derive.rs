// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a kernel's strings and its embedded configuration tell.

use super::{
    payload::Compression,
    Config,
    Format,
    FormatKind,
    Formats,
    Source, //
};
use memchr::memmem;

/// The release, out of the banner that every kernel prints first.
pub(super) fn release(kernel: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";

    memmem::find_iter(kernel, BANNER).find_map(|at| {
        let rest = &kernel[at + BANNER.len()..];
        let end = rest.iter().take(128).position(|byte| *byte == b' ')?;
        let text = std::str::from_utf8(&rest[..end]).ok()?;
        let starts_well = text.starts_with(|char: char| char.is_ascii_digit());
        (starts_well && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| text.to_owned())
    })
}

/// The configuration (`CONFIG_IKCONFIG`).
pub(super) fn config(kernel: &[u8]) -> Option<Config> {
    const BEGIN: &[u8] = b"IKCFG_ST";

    memmem::find_iter(kernel, BEGIN).find_map(|at| {
        let packed = &kernel[at + BEGIN.len()..];
        if Compression::detect(packed) != Some(Compression::Gzip) {
            return None;
        }
        let text = Compression::Gzip.unpack(packed).ok()?;
        Some(Config(String::from_utf8(text).ok()?))
    })
}

/// The formats, as far as strings tell them: those of the stock kernels are constants there.
pub(super) fn formats(kernel: &[u8], config: Option<&Config>) -> Formats {
    let mut formats = Formats {
        source: Source::Derived,
        entries: Vec::new(),
    };
    // A kernel without LUO may have the words in some driver, but says that it has none.
    if config.is_some_and(|config| !config.is_yes("LIVEUPDATE")) {
        return formats;
    }
    for (kind, stem) in [
        (FormatKind::Kho, "kho-v"),
        (FormatKind::Root, "luo-v"),
        (FormatKind::Handler, "memfd-v"),
    ] {
        for name in versions(kernel, stem) {
            formats.entries.push(Format { kind, name });
        }
    }
    // Without its root it is no LUO, whatever else is there.
    if formats.of(FormatKind::Root).next().is_none() {
        formats.entries.clear();
    }
    formats.tidy();
    formats
}

/// Whole strings of a stem and a number.
fn versions<'a>(kernel: &'a [u8], stem: &'a str) -> impl Iterator<Item = String> + 'a {
    memmem::find_iter(kernel, stem.as_bytes()).filter_map(move |at| {
        let before = at.checked_sub(1).map(|before| kernel[before]);
        if before.is_some_and(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let rest = &kernel[at + stem.len()..];
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let whole = (1..=4).contains(&digits) && rest.get(digits) == Some(&0);
        let number = std::str::from_utf8(&rest[..digits]).ok()?;
        whole.then(|| format!("{stem}{number}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_strings_only() {
        let names = |kernel: &[u8]| versions(kernel, "luo-v").collect::<Vec<_>>();

        assert_eq!(names(b"\0luo-v5\0"), ["luo-v5"]);
        assert_eq!(names(b"luo-v12\0\x01luo-v5\0"), ["luo-v12", "luo-v5"]);
        assert!(names(b"\0xluo-v5\0luo-v\0luo-v5a\0luo-v5").is_empty());
    }

    #[test]
    fn releases() {
        assert_eq!(
            release(b"\0Linux version %s\0Linux version 7.3.4-x (me@here)").as_deref(),
            Some("7.3.4-x")
        );
        assert_eq!(release(b"Linux version 7"), None);
    }
}
