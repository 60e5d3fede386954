// SPDX-License-Identifier: GPL-2.0

//! `memfd-v2`: the layout of the C handler.

use core::fmt;

use kernel::{
    kho,
    liveupdate::may_lose_properties,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    shmem::PinnedExtent, //
};

use super::{
    abi::{
        memfd::{
            self as layout,
            FolioCheckV2,
            FolioFlags,
            FolioV2,
            FoundV2,
            MemfdV2,
            OpenFlags, //
        },
        memfd_v2::FOLIOS_PER_PAGE,
        vmalloc::{
            self,
            Area,
            Chunk,
            ListError, //
        },
        Block,
        Memory,
        Phys, //
    },
    attributes::{
        Attributes,
        READ_WRITE, //
    },
    late::FileJournal,
    layout::{
        prefer_v2,
        Layout, //
    },
    parts::Part,
    preserve::pages_of,
    record_pages::RecordPages,
    report::{
        address,
        bad_header,
        malformed,
        phys_of, //
    }, //
};

/// `memfd-v2`: the layout of the C handler.
pub(super) struct FoliosV2;

kernel::liveupdate_note!("handler", layout::COMPATIBLE_V2);

/// The folios of a memfd, in pages that the C handler sees as one array.
pub(super) struct FolioPages {
    pages: RecordPages,
    /// The list of these pages, as KHO makes it for an array.
    chunks: RecordPages,
    folios: u64,
}

impl FolioPages {
    /// Adds a folio, which is to be at `slot` of its page.
    fn push(&mut self, slot: usize, folio: FolioV2) -> Result {
        if slot == 0 {
            let page = self.pages.add()?;
            self.chunks.put(
                |block| Chunk::of_mut(block).is_some_and(|chunk| chunk.push(page).is_ok()),
                |last, next| {
                    if let Some(chunk) = Chunk::of_mut(last) {
                        chunk.set_next(Some(next));
                    }
                },
            )?;
        }

        let slots = self.pages.last().map(FolioV2::in_page_mut);
        *slots.and_then(|slots| slots.get_mut(slot)).ok_or(EINVAL)? = folio;
        self.folios += 1;
        Ok(())
    }

    fn area(&self) -> Result<Option<Area>> {
        let Some(first) = self.chunks.first()? else {
            return Ok(None);
        };
        Ok(Some(Area {
            first,
            pages: u32::try_from(self.pages.len())?,
            flags: vmalloc::FLAG_ALLOC,
            order: 0,
        }))
    }
}

impl Layout for FoliosV2 {
    const COMPATIBLE: &'static CStr = layout::COMPATIBLE_V2;
    const RUNS: bool = false;

    type Parts = FolioPages;
    type List = FoundV2;

    fn wanted() -> bool {
        prefer_v2()
    }

    fn check(attributes: &Attributes) -> Result {
        // The C handler would read what is in the page.
        if attributes.poisoned {
            return Err(EHWPOISON);
        }
        // It would come back open for both.
        if attributes.open.bits() & READ_WRITE != READ_WRITE && !may_lose_properties() {
            return Err(EOPNOTSUPP);
        }
        // The C handler takes no larger ones.
        match u32::try_from(pages_of(attributes.size)) {
            Ok(_) => Ok(()),
            Err(_) => Err(EFBIG),
        }
    }

    fn list(extents: &[PinnedExtent]) -> Result<FolioPages> {
        const FLAGS: FolioFlags = FolioFlags {
            dirty: true,
            uptodate: true,
        };

        let mut parts = FolioPages {
            pages: RecordPages::new(),
            chunks: RecordPages::new(),
            folios: 0,
        };

        for (extent, slot) in extents.iter().zip((0..FOLIOS_PER_PAGE).cycle()) {
            let pfn = phys_of(extent.phys()?)?.pfn();
            let folio = FolioV2::new(pfn, FLAGS, extent.index()).ok_or(EINVAL)?;
            parts.push(slot, folio)?;
        }
        Ok(parts)
    }

    fn journal(_file: u64) -> Result<FileJournal> {
        Ok(FileJournal::Refused)
    }

    fn write(
        header: &mut Block,
        attributes: &Attributes,
        parts: &FolioPages,
        _late: Option<Phys>,
    ) -> Result {
        *MemfdV2::of_mut(header).ok_or(EINVAL)? = MemfdV2::new(&FoundV2 {
            pos: attributes.position,
            size: attributes.size,
            seals: attributes.seals,
            nr_folios: parts.folios,
            folios: parts.area()?,
        });
        Ok(())
    }

    fn read(header: &Block) -> Result<(Attributes, FoundV2)> {
        let header = MemfdV2::of(header).ok_or(EINVAL)?;
        let memfd = header.parse().map_err(bad_header)?;
        let attributes = Attributes {
            position: memfd.pos,
            size: memfd.size,
            seals: memfd.seals,
            mode: memfd.implied_mode(),
            owner: None,
            open: OpenFlags::from_bits(READ_WRITE).ok_or(EINVAL)?,
            name: None,
            poisoned: false,
        };
        Ok((attributes, memfd))
    }

    fn late(_list: &FoundV2) -> Option<Phys> {
        None
    }

    fn summarize(header: &Block, to: &mut dyn fmt::Write) -> Result {
        let header = MemfdV2::of(header).ok_or(EINVAL)?;
        let memfd = header.parse().map_err(|_| EINVAL)?;

        Ok(write!(
            to,
            "size {}, {} folios",
            memfd.size, memfd.nr_folios
        )?)
    }

    fn read_list(header: &Block) -> Result<FoundV2> {
        let mut header = *MemfdV2::of(header).ok_or(EINVAL)?;

        header.set_pos(0);
        header.set_seals(0);
        header.parse().map_err(bad_header)
    }

    fn walk<M: Memory<Error = Error>>(
        mem: &M,
        list: &FoundV2,
        mut visit: impl FnMut(&Part) -> Result,
    ) -> Result {
        let Some(area) = &list.folios else {
            return Ok(());
        };
        if area.order != 0 {
            malformed("memfd: the folios are listed in huge pages");
            return Err(EOPNOTSUPP);
        }

        let mut check = FolioCheckV2::new(list);
        let mut left = usize::try_from(list.nr_folios)?;

        vmalloc::walk(mem, area, |at| {
            let page = mem.page(at)?;
            for record in FolioV2::in_page(&page).iter().take(left) {
                left -= 1;
                let Some(folio) = check.check(record).map_err(malformed)? else {
                    continue;
                };

                // How large it is, only KHO knows. If it is not there, the visitor will see.
                let start = address(folio.start)?;
                let pages = kho::preserved_size(start).unwrap_or(PAGE_SIZE) >> PAGE_SHIFT;
                check.restored(&folio, pages as u64).map_err(malformed)?;
                visit(&Part {
                    start,
                    index: folio.index,
                    pages,
                    folio: true,
                    uptodate: folio.flags.uptodate,
                })?;
            }
            Ok(())
        })
        .map_err(|e| match e {
            ListError::Memory { cause, .. } => cause,
            ListError::Format(e) => malformed(e),
        })
    }
}
