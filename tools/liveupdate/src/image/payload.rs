// SPDX-License-Identifier: MIT OR Apache-2.0

//! Compressed parts of images.

use super::ImageError;
use std::{
    fmt,
    io::{
        self,
        Read, //
    },
};

/// How something is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "lowercase")
)]
pub enum Compression {
    /// gzip
    Gzip,
    /// zstd
    Zstd,
    /// xz
    Xz,
    /// lzma
    Lzma,
    /// LZ4, as frames or in the older form
    Lz4,
    /// bzip2
    Bzip2,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Lz4 => "lz4",
            Self::Bzip2 => "bzip2",
        })
    }
}

/// The most that is unpacked: far more than any kernel has.
const MAX: u64 = 1 << 29;

/// The largest window of zstd that is accepted, as an exponent of two.
const ZSTD_WINDOW: u32 = 30;

/// The most memory that LZMA may take, in KiB.
const LZMA_MEMORY: u32 = 1 << 20;

impl Compression {
    /// Tells by the first bytes.
    pub(crate) fn detect(bytes: &[u8]) -> Option<Self> {
        let known: [(&[u8], Self); 7] = [
            (b"\x1f\x8b", Self::Gzip),
            (b"\x28\xb5\x2f\xfd", Self::Zstd),
            (b"\xfd7zXZ\0", Self::Xz),
            // Its usual properties, and a dictionary of whole KiB.
            (b"\x5d\0\0", Self::Lzma),
            (b"\x02\x21\x4c\x18", Self::Lz4),
            (b"\x04\x22\x4d\x18", Self::Lz4),
            (b"BZh", Self::Bzip2),
        ];
        let found = known.iter().find(|(magic, _)| bytes.starts_with(magic));

        found.map(|(_, compression)| *compression)
    }

    /// Unpacks the first stream in `bytes`; what follows it is left alone.
    pub(super) fn unpack(self, bytes: &[u8]) -> Result<Vec<u8>, ImageError> {
        let mut out = Vec::new();

        self.reader(bytes)
            .and_then(|reader| reader.take(MAX + 1).read_to_end(&mut out))
            .map_err(|err| match err.kind() {
                io::ErrorKind::UnexpectedEof => ImageError::Truncated,
                _ => ImageError::Corrupt(format!("{self}: {err}")),
            })?;
        if out.len() as u64 > MAX {
            return Err(ImageError::Corrupt(format!("{self}: unpacks to too much")));
        }
        Ok(out)
    }

    fn reader<'a>(self, bytes: &'a [u8]) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(flate2::read::GzDecoder::new(bytes)),
            Self::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(bytes)?.single_frame();
                decoder.window_log_max(ZSTD_WINDOW)?;
                Box::new(decoder)
            }
            Self::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(
                bytes,
                false,
                LZMA_MEMORY,
            )),
            Self::Lzma => Box::new(lzma_rust2::LzmaReader::new_mem_limit(
                bytes,
                LZMA_MEMORY,
                None,
            )?),
            Self::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(bytes)),
            Self::Bzip2 => Box::new(bzip2::read::BzDecoder::new(bytes)),
        })
    }
}
