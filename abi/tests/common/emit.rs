// SPDX-License-Identifier: GPL-2.0

//! Leaves a handover in memory as an old kernel would, with the checks of it.

use super::{
    crc32c,
    Claims,
    PhysMem,
    Shared,
    MAX_BLOCKS, //
};
use luo_abi::{
    block::{
        Block,
        Record, //
    },
    chain::{
        walk,
        Memory, //
    },
    check::{
        self,
        Checks,
        Span,
        Table,
        CHECKS_PER_PAGE, //
    },
    flb::{
        Flb,
        FlbBlock,
        FlbRecord, //
    },
    memfd::{
        Extent,
        ExtentKind,
        ExtentRecord,
        FolioFlags,
        FolioV2,
        FoundV2,
        Memfd,
        MemfdHeader,
        MemfdV2,
        SummedExtentRecord,
        COMPATIBLE_EXTENTS,
        COMPATIBLE_V2, //
    },
    memfd_v2::FOLIOS_PER_PAGE,
    name::{
        Compatible,
        SessionName, //
    },
    root::{
        Root,
        RootChecks, //
    },
    session::{
        File,
        FileRecord,
        Session,
        SessionRecord, //
    },
    vmalloc::{
        self,
        Area,
        Chunk,
        FLAG_ALLOC, //
    },
    Phys, //
};
use std::collections::BTreeMap;
use zerocopy::{
    FromBytes,
    IntoBytes, //
};

/// Writes a chain that holds `records`, `per_block` in a block at most.
pub fn emit_chain<R: Record>(mem: &mut PhysMem, records: &[R], per_block: usize) -> Option<Phys> {
    let mut head = None;
    let mut last: Option<Phys> = None;
    for some in records.chunks(per_block.min(Block::capacity::<R>())) {
        let at = mem.page();
        for record in some {
            mem.block(at).push(record).unwrap();
        }
        match last {
            Some(last) => mem.block(last).set_next(Some(at)),
            None => head = Some(at),
        }
        last = Some(at);
    }
    head
}

/// What is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A handler that is not known here.
    Other(Compatible, u64),
    /// `memfd-extents-v3`: header and extents. Counts and addresses are not looked at.
    Extents(Box<Memfd>, Vec<Extent>),
    /// `memfd-v2`: position, size, seals, folios (index, pages).
    V2(u64, u64, u32, Vec<(u64, u64)>),
}

/// A handover.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub number: u64,
    pub sessions: BTreeMap<SessionName, BTreeMap<u64, Content>>,
    pub flbs: BTreeMap<Compatible, (u64, u64)>,
}

/// Leaves a handover in memory. Addresses in `image` are replaced by those of new pages.
pub fn emit(image: &mut Image, mem: &mut PhysMem, per_block: usize) -> Root {
    let mut sessions = Vec::new();
    for (name, files) in &mut image.sessions {
        let mut records = Vec::new();
        for (token, content) in files {
            let (compatible, data) = match content {
                Content::Other(compatible, data) => (*compatible, *data),
                Content::Extents(memfd, extents) => (
                    Compatible::from_cstr(COMPATIBLE_EXTENTS).unwrap(),
                    emit_extents(memfd, extents, mem, per_block).get(),
                ),
                Content::V2(pos, size, seals, folios) => (
                    Compatible::from_cstr(COMPATIBLE_V2).unwrap(),
                    emit_v2(*pos, *size, *seals, folios, mem).get(),
                ),
            };
            records.push(FileRecord::new(&File {
                compatible,
                data,
                token: *token,
            }));
        }
        sessions.push(SessionRecord::new(&Session {
            name: *name,
            files: emit_chain(mem, &records, per_block),
            count: records.len() as u64,
        }));
    }
    let sessions = emit_chain(mem, &sessions, per_block);

    let flbs = (!image.flbs.is_empty()).then(|| {
        let at = mem.page();
        let page = FlbBlock::mut_from_bytes(mem.bytes(at)).unwrap();
        page.clear();
        for (name, (data, count)) in &image.flbs {
            page.push(&Flb {
                name: *name,
                data: *data,
                count: *count,
            })
            .unwrap();
        }
        at
    });
    Root {
        number: image.number,
        sessions,
        flbs,
    }
}

fn emit_extents(
    memfd: &mut Memfd,
    extents: &mut [Extent],
    mem: &mut PhysMem,
    per_block: usize,
) -> Phys {
    for extent in extents.iter_mut() {
        let align = match extent.kind {
            ExtentKind::Pages => 1,
            ExtentKind::Folios { order } => 1 << order,
        };
        extent.start = Phys::from_pfn(mem.data(extent.pages.into(), align)).unwrap();
    }
    let record = |extent: &Extent| SummedExtentRecord(ExtentRecord::new(extent));
    let records: Vec<_> = extents.iter().map(record).collect();
    memfd.nr_extents = records.len() as u64;
    memfd.nr_pages = extents.iter().map(|extent| u64::from(extent.pages)).sum();
    memfd.extents = emit_chain(mem, &records, per_block);
    let mut next = memfd.extents;
    while let Some(at) = next {
        mem.block(at).set_sum::<SummedExtentRecord>(crc32c);
        next = mem.block(at).next();
    }
    let at = mem.page();
    *MemfdHeader::of_mut(mem.block(at)).unwrap() = MemfdHeader::new(memfd).summed(crc32c);
    at
}

fn emit_v2(pos: u64, size: u64, seals: u32, folios: &[(u64, u64)], mem: &mut PhysMem) -> Phys {
    let flags = FolioFlags {
        dirty: true,
        uptodate: true,
    };
    let records: Vec<_> = folios
        .iter()
        .map(|(index, pages)| FolioV2::new(mem.data(*pages, *pages), flags, *index).unwrap())
        .collect();
    let mut runs = Vec::new();
    for some in records.chunks(FOLIOS_PER_PAGE) {
        let at = mem.page();
        for (to, from) in FolioV2::in_page_mut(mem.block(at)).iter_mut().zip(some) {
            *to = *from;
        }
        runs.push(at);
    }
    let folios = (!runs.is_empty()).then(|| emit_area(mem, &runs, 0));
    let at = mem.page();
    *MemfdV2::of_mut(mem.block(at)).unwrap() = MemfdV2::new(&FoundV2 {
        pos,
        size,
        seals,
        nr_folios: records.len() as u64,
        folios,
    });
    at
}

/// Writes the list of an area, as the C implementation does: with a new page as soon as one is
/// full.
pub fn emit_area(mem: &mut PhysMem, runs: &[Phys], order: u16) -> Area {
    let first = mem.page();
    let mut at = first;
    for run in runs {
        Chunk::of_mut(mem.block(at)).unwrap().push(*run).unwrap();
        if Chunk::of(mem.block(at)).unwrap().runs().count() == vmalloc::CHUNK_CAPACITY {
            let next = mem.page();
            Chunk::of_mut(mem.block(at)).unwrap().set_next(Some(next));
            at = next;
        }
    }
    Area {
        first,
        pages: u32::try_from(runs.len()).unwrap() << order,
        flags: FLAG_ALLOC,
        order,
    }
}

/// What the root says about checks, on its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    pub sessions: Span,
    pub flbs: Span,
    pub pages: Vec<[u8; 8]>,
}

impl Spans {
    pub fn of_root(&self) -> RootChecks<'_> {
        RootChecks {
            sessions: self.sessions,
            flbs: self.flbs,
            pages: &self.pages,
        }
    }

    /// The table, as far as its pages can be claimed.
    pub fn checks<'m>(&self, claims: &Claims<'m>) -> Checks<Pages<'m>> {
        let pages = self
            .of_root()
            .addresses()
            .map(|at| claims.page(at?).ok())
            .collect();
        Checks::new(Pages(pages), crc32c)
    }
}

/// The pages of a table.
pub struct Pages<'m>(Vec<Option<&'m Block>>);

impl Table for Pages<'_> {
    fn get(&self, index: u64) -> Option<u32> {
        let index = usize::try_from(index).ok()?;
        let page = (*self.0.get(index / CHECKS_PER_PAGE)?)?;
        let at = 4 * (index % CHECKS_PER_PAGE);
        Some(u32::from_ne_bytes(
            page.as_bytes()[at..at + 4].try_into().unwrap(),
        ))
    }
}

/// Appends the checks of a chain.
fn emit_checks_of<R: Record>(
    mem: &PhysMem,
    head: Option<Phys>,
    links: &mut impl Iterator<Item = u32>,
    checks: &mut Vec<u32>,
) -> Span {
    let first = checks.len() as u64;
    let mut count = 0;
    let mut next = head;
    while let Some(at) = next {
        let block = &mem.pages[&at.get()];
        count += block.raw_count();
        check::write::<R, ()>(crc32c, block, links, |check| {
            checks.push(check);
            Ok(())
        })
        .unwrap();
        next = block.next();
    }
    Span { count, first }
}

/// Writes the checks of a handover.
pub fn emit_checks(root: &Root, mem: &mut PhysMem) -> Spans {
    let mut checks = Vec::new();
    let mut sessions = Vec::new();
    walk::<SessionRecord, _>(&Shared(mem), root.sessions, MAX_BLOCKS, |_, record| {
        sessions.push(record.parse().unwrap());
        Ok(())
    })
    .unwrap();
    let none = &mut std::iter::empty();
    let links: Vec<_> = sessions
        .iter()
        .map(|session| {
            let span = emit_checks_of::<FileRecord>(mem, session.files, none, &mut checks);
            assert_eq!(span.count, session.count);
            u32::try_from(span.first).unwrap()
        })
        .collect();
    let sessions =
        emit_checks_of::<SessionRecord>(mem, root.sessions, &mut links.into_iter(), &mut checks);
    let mut flbs = Span::default();
    if let Some(at) = root.flbs {
        let block = &mem.pages[&at.get()];
        flbs = Span {
            count: block.raw_count(),
            first: checks.len() as u64,
        };
        check::write::<FlbRecord, ()>(crc32c, block, none, |check| {
            checks.push(check);
            Ok(())
        })
        .unwrap();
    }
    let pages = checks
        .chunks(CHECKS_PER_PAGE)
        .map(|some| {
            let at = mem.page();
            mem.bytes(at)[..4 * some.len()].copy_from_slice(some.as_bytes());
            at.get().to_ne_bytes()
        })
        .collect();
    Spans {
        sessions,
        flbs,
        pages,
    }
}
