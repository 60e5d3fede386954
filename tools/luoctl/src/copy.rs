// SPDX-License-Identifier: GPL-2.0

//! Copies of files that keep holes.

use indicatif::{
    ProgressBar,
    ProgressStyle, //
};
use nix::{
    errno::Errno,
    unistd::{
        lseek,
        Whence, //
    },
};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt, //
};

/// How much is copied at once.
const CHUNK: usize = 1 << 20;

/// Copies all of `from`, wherever its position is, to `to`, which is empty. Where `from` has holes
/// `to` has them, too. Returns the size, holes included.
///
/// The position of `from` is somewhere else then.
pub fn copy_sparse(from: &File, to: &File, progress: &ProgressBar) -> io::Result<u64> {
    let size = from.metadata()?.len();
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;

    progress.set_length(size);
    while let Some(begin) = seek(from, at, Whence::SeekData)? {
        // There is a hole at the end at the latest.
        let end = seek(from, begin, Whence::SeekHole)?.unwrap_or(size);
        at = begin;
        while at < end {
            let len = usize::try_from(end - at).map_or(CHUNK, |left| left.min(CHUNK));
            let got = from.read_at(&mut chunk[..len], at)?;
            if got == 0 {
                // It became shorter, which no preserved file does.
                break;
            }
            to.write_all_at(&chunk[..got], at)?;
            at += got as u64;
            progress.set_position(at);
        }
        if at < end {
            break;
        }
    }
    to.set_len(size)?;
    progress.finish_and_clear();
    Ok(size)
}

/// Looks for data or a hole from `at` on; [`None`] at the end of the file.
fn seek(file: &File, at: u64, what: Whence) -> io::Result<Option<u64>> {
    let at = i64::try_from(at).map_err(|_| io::ErrorKind::FileTooLarge)?;

    match lseek(file, at, what) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// A bar for one copy, on a terminal only.
pub fn progress_bar(name: String) -> ProgressBar {
    let bar = ProgressBar::new(0);
    let style = "{msg}: {wide_bar} {binary_bytes} of {binary_total_bytes}, {eta}";

    // The template is a constant, and good.
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.set_message(name);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{
        memfd_create,
        MFdFlags, //
    };
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;

    const PAGE: u64 = 4096;

    fn memfd() -> File {
        memfd_create("test", MFdFlags::empty()).unwrap().into()
    }

    fn copied(from: &File) -> (File, u64) {
        let to = memfd();
        let size = copy_sparse(from, &to, &ProgressBar::hidden()).unwrap();
        (to, size)
    }

    #[test]
    fn holes_stay_holes() {
        let from = memfd();
        from.set_len(1 << 30).unwrap();
        from.write_all_at(b"x", 512 << 20).unwrap();
        let (to, size) = copied(&from);

        assert_eq!(size, 1 << 30);
        assert_eq!(to.metadata().unwrap().len(), 1 << 30);
        assert!(to.metadata().unwrap().blocks() * 512 <= 4 * PAGE);
        let mut byte = [0];
        to.read_exact_at(&mut byte, 512 << 20).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn nothing() {
        let (to, size) = copied(&memfd());

        assert_eq!((size, to.metadata().unwrap().len()), (0, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_layout(pages in proptest::collection::vec(any::<bool>(), 0..40), tail in 0..PAGE) {
            let from = memfd();
            for (number, _) in pages.iter().enumerate().filter(|(_, there)| **there) {
                from.write_all_at(&[number as u8 + 1; 4096], number as u64 * PAGE).unwrap();
            }
            let size = pages.len() as u64 * PAGE + tail;
            from.set_len(size).unwrap();
            let (to, copied) = copied(&from);

            prop_assert_eq!(copied, size);
            let read = |file: &File| {
                let mut bytes = vec![0; size as usize];
                file.read_exact_at(&mut bytes, 0).unwrap();
                bytes
            };
            prop_assert!(read(&from) == read(&to));
        }
    }
}
