// SPDX-License-Identifier: MIT OR Apache-2.0

//! Images of all kinds, made here: as small as can be, and broken in many ways.

#![cfg(feature = "image")]

use liveupdate::image::{
    Compression,
    FormatKind,
    Image,
    ImageError,
    Kind,
    Source, //
};
use proptest::prelude::*;
use std::io::{
    Read,
    Write, //
};

/// A note as the kernel's linker places it.
fn note(text: &str) -> Vec<u8> {
    let mut note = Vec::new();
    note.extend(11_u32.to_le_bytes());
    note.extend(64_u32.to_le_bytes());
    note.extend(1_u32.to_le_bytes());
    note.extend(b"LiveUpdate\0\0");
    note.extend(text.as_bytes());
    note.resize(24 + 64, 0);
    note
}

/// The inside of a kernel.
fn kernel(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut kernel = b"\0Linux version 7.3.4-test (someone@somewhere) #1\0".to_vec();
    for part in parts {
        kernel.resize(kernel.len().next_multiple_of(4), 0);
        kernel.extend(part);
    }
    kernel
}

fn ours() -> Vec<u8> {
    kernel(&[
        note("root luo-v1"),
        note("handler memfd-v2"),
        note("default kho=on"),
    ])
}

/// What the stock kernel has instead of notes.
fn stock() -> Vec<u8> {
    kernel(&[b"\0luo-v5\0\0memfd-v2\0kho-v4\0".to_vec()])
}

/// An ELF file of one segment.
fn elf(kernel: &[u8]) -> Vec<u8> {
    let mut elf = vec![0; 64 + 56];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18..20].copy_from_slice(&62_u16.to_le_bytes());
    elf[32..40].copy_from_slice(&64_u64.to_le_bytes());
    elf[54..56].copy_from_slice(&56_u16.to_le_bytes());
    elf[56..58].copy_from_slice(&1_u16.to_le_bytes());
    elf[64 + 8..64 + 16].copy_from_slice(&120_u64.to_le_bytes());
    elf[64 + 32..64 + 40].copy_from_slice(&(kernel.len() as u64).to_le_bytes());
    elf.extend(kernel);
    elf
}

fn arm64_image(kernel: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 64];
    image[16..24].copy_from_slice(&(32_u64 << 20).to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    image.extend(kernel);
    image
}

fn compress(how: Compression, bytes: &[u8]) -> Vec<u8> {
    match how {
        Compression::Gzip => {
            let mut packed = Vec::new();
            flate2::read::GzEncoder::new(bytes, flate2::Compression::fast())
                .read_to_end(&mut packed)
                .unwrap();
            packed
        }
        Compression::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        Compression::Xz => {
            let options = lzma_rust2::XzOptions::with_preset(1);
            let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
        Compression::Lzma => {
            let options = lzma_rust2::LzmaOptions::with_preset(1);
            let mut writer =
                lzma_rust2::LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
        Compression::Lz4 => {
            let info = lz4_flex::frame::FrameInfo::new().legacy_frame(true);
            let mut writer = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
        Compression::Bzip2 => {
            let mut packed = Vec::new();
            bzip2::read::BzEncoder::new(bytes, bzip2::Compression::fast())
                .read_to_end(&mut packed)
                .unwrap();
            packed
        }
    }
}

const ALL: [Compression; 6] = [
    Compression::Gzip,
    Compression::Zstd,
    Compression::Xz,
    Compression::Lzma,
    Compression::Lz4,
    Compression::Bzip2,
];

/// A bzImage with the fields that count.
fn bz_image(how: Compression, kernel: &[u8]) -> Vec<u8> {
    let unpacked = elf(kernel);
    let mut payload = compress(how, &unpacked);
    if how != Compression::Gzip {
        payload.extend((unpacked.len() as u32).to_le_bytes());
    }
    let mut image = vec![0; 2 * 512];
    let lead = 32;
    let size = lead + payload.len();
    image[0x1f1] = 1;
    image[0x1f4..0x1f8].copy_from_slice(&(size.div_ceil(16) as u32).to_le_bytes());
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x236] = 1;
    image[0x248..0x24c].copy_from_slice(&(lead as u32).to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image[0x260..0x264].copy_from_slice(&(48_u32 << 20).to_le_bytes());
    image.resize(image.len() + lead, 0x90);
    image.extend(payload);
    image.resize(1024 + size.next_multiple_of(16), 0);
    image
}

fn zboot(how: Compression, kernel: &[u8]) -> Vec<u8> {
    let payload = compress(how, &arm64_image(kernel));
    let mut image = vec![0; 128];
    image[..2].copy_from_slice(b"MZ");
    image[4..8].copy_from_slice(b"zimg");
    image[8..12].copy_from_slice(&128_u32.to_le_bytes());
    image[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend(payload);
    image
}

fn check(image: &[u8], kind: Kind, compression: Option<Compression>) {
    let image = Image::parse(image).unwrap();

    assert_eq!((image.kind, image.compression), (kind, compression));
    assert_eq!(image.release.as_deref(), Some("7.3.4-test"));
    assert_eq!(image.formats.source, Source::Note);
    assert!(image.formats.has(FormatKind::Root, "luo-v1"));
    assert!(image.formats.has(FormatKind::Handler, "memfd-v2"));
    assert_eq!(image.kho_by_default(), Some(true));
}

#[test]
fn every_kind_in_every_compression() {
    for how in ALL {
        check(&bz_image(how, &ours()), Kind::BzImage, Some(how));
        check(&zboot(how, &ours()), Kind::Zboot, Some(how));
        check(&compress(how, &elf(&ours())), Kind::Vmlinux, Some(how));
        check(
            &compress(how, &arm64_image(&ours())),
            Kind::Arm64Image,
            Some(how),
        );
    }
    check(&elf(&ours()), Kind::Vmlinux, None);
    check(&arm64_image(&ours()), Kind::Arm64Image, None);
}

#[test]
fn machines_and_sizes() {
    let image = Image::parse(&bz_image(Compression::Zstd, &ours())).unwrap();
    assert_eq!(
        (image.machine, image.boot_size),
        (Some("x86_64"), Some(48 << 20))
    );
    let image = Image::parse(&zboot(Compression::Gzip, &ours())).unwrap();
    assert_eq!(
        (image.machine, image.boot_size),
        (Some("aarch64"), Some(32 << 20))
    );
}

#[test]
fn derived() {
    let image = Image::parse(&bz_image(Compression::Xz, &stock())).unwrap();

    assert_eq!(image.formats.source, Source::Derived);
    assert!(image.formats.has(FormatKind::Root, "luo-v5"));
    assert!(image.formats.has(FormatKind::Handler, "memfd-v2"));
    assert!(image.formats.has(FormatKind::Kho, "kho-v4"));
    assert_eq!(image.kho_by_default(), None);
}

#[test]
fn configuration() {
    let config = |text: &str| {
        let mut part = b"IKCFG_ST".to_vec();
        part.extend(compress(Compression::Gzip, text.as_bytes()));
        part.extend(b"IKCFG_ED");
        let mut kernel = stock();
        kernel.extend(part);
        Image::parse(&elf(&kernel)).unwrap()
    };

    let on = config("CONFIG_LIVEUPDATE=y\nCONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT=y\n");
    assert!(on.formats.has(FormatKind::Root, "luo-v5"));
    assert_eq!(on.kho_by_default(), Some(true));
    let off = config("# CONFIG_LIVEUPDATE is not set\n");
    assert!(off.formats.entries.is_empty());
    assert_eq!(off.kho_by_default(), Some(false));
    assert_eq!(off.config.unwrap().get("LIVEUPDATE"), None);
}

#[test]
fn a_kernel_without_live_update() {
    let image = Image::parse(&elf(&kernel(&[b"memfd-v2\0".to_vec()]))).unwrap();

    assert!(image.formats.entries.is_empty());
}

#[test]
fn no_kernels() {
    let unknown = |bytes: &[u8]| matches!(Image::parse(bytes), Err(ImageError::Unknown));

    assert!(unknown(b""));
    assert!(unknown(b"#!/bin/sh\n"));
    assert!(unknown(&[0; 4096]));
    assert!(unknown(&compress(Compression::Gzip, b"text")));
}

#[test]
fn truncated_anywhere() {
    for how in ALL {
        let image = bz_image(how, &ours());
        for len in (0x264..image.len() - 16).step_by(61) {
            let result = Image::parse(&image[..len]);
            assert!(matches!(result, Err(ImageError::Truncated)), "{how} {len}");
        }
        let image = compress(how, &elf(&ours()));
        for len in 6..image.len() - 8 {
            assert!(Image::parse(&image[..len]).is_err(), "{how} {len}");
        }
    }
    let image = elf(&ours());
    for len in 6..image.len() {
        assert!(matches!(
            Image::parse(&image[..len]),
            Err(ImageError::Truncated)
        ));
    }
}

#[test]
fn bombs() {
    let zeros = std::io::repeat(0).take((1 << 29) + 4096);
    let bomb = zstd::encode_all(zeros, 1).unwrap();

    assert!(matches!(Image::parse(&bomb), Err(ImageError::Corrupt(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn corruption_never_panics(
        which in 0..4_usize,
        how in 0..ALL.len(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut image = match which {
            0 => bz_image(ALL[how], &ours()),
            1 => zboot(ALL[how], &ours()),
            2 => elf(&ours()),
            _ => compress(ALL[how], &arm64_image(&ours())),
        };
        for (at, byte) in changes {
            let at = at.index(image.len());
            image[at] = byte;
        }
        drop(Image::parse(&image));
    }
}
