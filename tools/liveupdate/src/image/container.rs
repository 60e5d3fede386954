// SPDX-License-Identifier: MIT OR Apache-2.0

//! The files that contain kernels, opened down to the kernel itself.

use super::{
    payload::Compression,
    ImageError,
    Kind, //
};
use std::borrow::Cow;

/// An opened file.
#[derive(Debug)]
pub(super) struct Container<'a> {
    pub(super) kind: Kind,
    pub(super) machine: Option<&'static str>,
    pub(super) compression: Option<Compression>,
    pub(super) boot_size: Option<u64>,
    /// The kernel as it is in memory, as ELF or flat.
    pub(super) kernel: Cow<'a, [u8]>,
}

impl<'a> Container<'a> {
    /// Opens a file.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, ImageError> {
        if let Some(compression) = Compression::detect(bytes) {
            let inner = compression.unpack(bytes)?;
            let opened = Container::bare(&inner)?;
            return Ok(Self {
                kind: opened.kind,
                machine: opened.machine,
                compression: Some(compression),
                boot_size: opened.boot_size,
                kernel: Cow::Owned(opened.kernel.into_owned()),
            });
        }
        Self::bare(bytes)
    }

    /// Opens a file that is not compressed as a whole.
    fn bare(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let openers = [Self::bz_image, Self::zboot, Self::arm64_image, Self::elf];

        openers
            .into_iter()
            .find_map(|open| open(bytes).transpose())
            .unwrap_or(Err(ImageError::Unknown))
    }

    /// A bzImage, as `Documentation/arch/x86/boot.rst` of the kernel describes it; [`None`] if it is
    /// none.
    fn bz_image(bytes: &'a [u8]) -> Result<Option<Self>, ImageError> {
        const SETUP_SECTS: usize = 0x1f1;
        const SYS_SIZE: usize = 0x1f4;
        const MAGIC: usize = 0x202;
        const VERSION: usize = 0x206;
        const XLOADFLAGS: usize = 0x236;
        const PAYLOAD_OFFSET: usize = 0x248;
        const PAYLOAD_LENGTH: usize = 0x24c;
        const INIT_SIZE: usize = 0x260;

        if bytes.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
            return Ok(None);
        }
        let field = |at| read_u32(bytes, at).ok_or(ImageError::Truncated);
        // Since version 2.08 it says where the payload is; and there is no older kernel with LUO.
        if read_u16(bytes, VERSION).ok_or(ImageError::Truncated)? < 0x20c {
            return Err(ImageError::Unknown);
        }
        let sectors = match bytes[SETUP_SECTS] {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let setup = (sectors + 1) * 512;
        let whole = setup.saturating_add(to_usize(field(SYS_SIZE)?).saturating_mul(16));
        // The last paragraph need not be whole.
        if bytes.len().saturating_add(15) < whole {
            return Err(ImageError::Truncated);
        }
        let start = setup.saturating_add(to_usize(field(PAYLOAD_OFFSET)?));
        let end = start.saturating_add(to_usize(field(PAYLOAD_LENGTH)?));
        let payload = bytes.get(start..end).ok_or(ImageError::Truncated)?;
        let wide = read_u16(bytes, XLOADFLAGS).ok_or(ImageError::Truncated)? & 1 != 0;

        let (compression, kernel) = unpack_payload(payload)?;
        Ok(Some(Self {
            kind: Kind::BzImage,
            machine: Some(if wide { "x86_64" } else { "i686" }),
            compression,
            boot_size: Some(field(INIT_SIZE)?.into()),
            kernel,
        }))
    }

    /// An EFI zboot image, as `drivers/firmware/efi/libstub/zboot-header.S` of the kernel makes it.
    fn zboot(bytes: &'a [u8]) -> Result<Option<Self>, ImageError> {
        const PAYLOAD_OFFSET: usize = 8;
        const PAYLOAD_SIZE: usize = 12;
        const COMPRESSION: usize = 24;

        if !bytes.starts_with(b"MZ") || bytes.get(4..8) != Some(b"zimg") {
            return Ok(None);
        }
        let field = |at| {
            read_u32(bytes, at)
                .map(to_usize)
                .ok_or(ImageError::Truncated)
        };
        let start = field(PAYLOAD_OFFSET)?;
        let end = start.saturating_add(field(PAYLOAD_SIZE)?);
        let payload = bytes.get(start..end).ok_or(ImageError::Truncated)?;
        if bytes.len() < COMPRESSION + 32 {
            return Err(ImageError::Truncated);
        }
        let compression = Compression::detect(payload).ok_or(ImageError::Compression)?;
        let inner = compression.unpack(payload)?;
        let opened = Container::arm64_image(&inner)?;
        let machine = opened.as_ref().and_then(|opened| opened.machine);
        let boot_size = opened.as_ref().and_then(|opened| opened.boot_size);

        Ok(Some(Self {
            kind: Kind::Zboot,
            machine,
            compression: Some(compression),
            boot_size,
            kernel: Cow::Owned(inner),
        }))
    }

    /// An arm64 Image, as `Documentation/arch/arm64/booting.rst` of the kernel describes it.
    fn arm64_image(bytes: &'a [u8]) -> Result<Option<Self>, ImageError> {
        const IMAGE_SIZE: usize = 16;
        const MAGIC: usize = 56;

        if bytes.get(MAGIC..MAGIC + 4) != Some(b"ARM\x64") {
            return Ok(None);
        }
        let size = read_u64(bytes, IMAGE_SIZE).ok_or(ImageError::Truncated)?;
        Ok(Some(Self {
            kind: Kind::Arm64Image,
            machine: Some("aarch64"),
            compression: None,
            boot_size: Some(size),
            kernel: Cow::Borrowed(bytes),
        }))
    }

    /// A vmlinux.
    fn elf(bytes: &'a [u8]) -> Result<Option<Self>, ImageError> {
        const CLASS: usize = 4;
        const MACHINE: usize = 18;
        const PROGRAM_OFFSET: usize = 32;
        const PROGRAM_ENTRY: usize = 54;
        const PROGRAM_COUNT: usize = 56;
        const SEGMENT_OFFSET: usize = 8;
        const SEGMENT_FILE_SIZE: usize = 32;

        // 64 bits, little-endian: as all kernels that have Kexec Handover.
        if !bytes.starts_with(b"\x7fELF") {
            return Ok(None);
        }
        if bytes.get(CLASS..CLASS + 2) != Some(&[2, 1]) {
            return Err(ImageError::Unknown);
        }
        let truncated = || ImageError::Truncated;
        let machine = match read_u16(bytes, MACHINE).ok_or_else(truncated)? {
            62 => Some("x86_64"),
            183 => Some("aarch64"),
            _ => None,
        };
        let offset = read_u64(bytes, PROGRAM_OFFSET).ok_or_else(truncated)?;
        let entry = read_u16(bytes, PROGRAM_ENTRY).ok_or_else(truncated)?;
        let count = read_u16(bytes, PROGRAM_COUNT).ok_or_else(truncated)?;
        if count == 0 {
            return Err(ImageError::Corrupt("it has no segments".into()));
        }
        for number in 0..u64::from(count) {
            let at = offset.saturating_add(number * u64::from(entry));
            let at = usize::try_from(at).map_err(|_| truncated())?;
            let field = |within| read_u64(bytes, at.saturating_add(within)).ok_or_else(truncated);
            let end = field(SEGMENT_OFFSET)?.saturating_add(field(SEGMENT_FILE_SIZE)?);
            if end > bytes.len() as u64 {
                return Err(truncated());
            }
        }
        Ok(Some(Self {
            kind: Kind::Vmlinux,
            machine,
            compression: None,
            boot_size: None,
            kernel: Cow::Borrowed(bytes),
        }))
    }
}

/// Unpacks the payload of a bzImage, which is compressed unless it is an ELF file.
fn unpack_payload(payload: &[u8]) -> Result<(Option<Compression>, Cow<'_, [u8]>), ImageError> {
    /// Behind all but gzip, which has it itself, stands the size of what is unpacked.
    const SIZE: usize = 4;

    if payload.starts_with(b"\x7fELF") {
        return Ok((None, Cow::Borrowed(payload)));
    }
    let compression = Compression::detect(payload).ok_or(ImageError::Compression)?;
    let stream = match compression {
        Compression::Gzip => payload,
        _ => &payload[..payload.len().saturating_sub(SIZE)],
    };
    Ok((Some(compression), Cow::Owned(compression.unpack(stream)?)))
}

fn to_usize(number: u32) -> usize {
    // Saturates where there are no 32 bits, and the file is too short for it then.
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
