// SPDX-License-Identifier: GPL-2.0

//! A machine's memory on the host, and handovers in it.
//!
//! [`PhysMem`] has preserved pages at physical addresses, [`Claims`] is what a new kernel sees of
//! them: each page can be claimed once. [`emit`] leaves a handover as an old kernel would,
//! [`read`] takes it over as a new one would, with everything that turned out wrong in a list.
//! Shared by the tests and the fuzz target, hence not all of it is used everywhere.

#![allow(dead_code, unreachable_pub)]

use std::{
    cell::RefCell,
    collections::{
        BTreeMap,
        BTreeSet,
        HashMap, //
    },
    ffi::CStr, //
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
        check_disjoint,
        Extent,
        ExtentCheck,
        ExtentKind,
        ExtentRecord,
        FileName,
        FolioCheckV2,
        FolioFlags,
        FolioV2,
        FoundV2,
        Memfd,
        MemfdHeader,
        MemfdV2,
        OpenFlags,
        Run,
        COMPATIBLE_EXTENTS,
        COMPATIBLE_V2, //
    },
    memfd_v2::FOLIOS_PER_PAGE,
    name::{
        Compatible,
        SessionName, //
    },
    phys::pages_for,
    root::{
        Root,
        RootChecks,
        Tree,
        TreeBuilder, //
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
use zerocopy::{
    FromBytes,
    FromZeros,
    IntoBytes, //
};

/// The most blocks that [`read`] follows in a chain.
pub const MAX_BLOCKS: usize = 1000;

/// Preserved pages.
#[derive(Default)]
pub struct PhysMem {
    /// Pages with metadata, by address.
    pub pages: BTreeMap<u64, Box<Block>>,
    /// Pages with data, by number; what is in them matters to no one.
    pub data: BTreeSet<u64>,
    last: u64,
}

impl PhysMem {
    /// A new page of metadata.
    pub fn page(&mut self) -> Phys {
        let at = Phys::from_pfn(self.take(1, 1)).unwrap();
        self.pages.insert(at.get(), Box::new(Block::new_zeroed()));
        at
    }

    /// New pages of data, aligned to a power of two; returns the number of the first.
    pub fn data(&mut self, pages: u64, align: u64) -> u64 {
        let pfn = self.take(pages, align);
        self.data.extend(pfn..pfn + pages);
        pfn
    }

    fn take(&mut self, pages: u64, align: u64) -> u64 {
        let pfn = self.last.max(0x100).next_multiple_of(align);
        // Leaves a gap, so that a run that is too long meets nothing.
        self.last = pfn + pages + 1;
        pfn
    }

    /// A page of metadata to be written.
    pub fn block(&mut self, at: Phys) -> &mut Block {
        self.pages.get_mut(&at.get()).unwrap()
    }

    /// A page of metadata as bytes.
    pub fn bytes(&mut self, at: Phys) -> &mut [u8] {
        self.block(at).as_mut_bytes()
    }
}

/// Why there is no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPage {
    /// Nothing is preserved there.
    Absent,
    /// It was claimed before.
    Claimed,
    /// A visitor has seen enough.
    Refused,
}

/// What the new kernel sees: each page can be claimed once.
pub struct Claims<'m> {
    mem: &'m PhysMem,
    claimed: RefCell<BTreeSet<u64>>,
}

impl<'m> Claims<'m> {
    pub fn new(mem: &'m PhysMem) -> Self {
        Self {
            mem,
            claimed: RefCell::default(),
        }
    }

    /// Claims pages of data.
    pub fn data(&self, run: Run) -> Result<(), NoPage> {
        // The first bad page decides, so a run of 2^32 pages is no problem.
        for pfn in run.pfn..run.end().ok_or(NoPage::Absent)? {
            if !self.mem.data.contains(&pfn) {
                return Err(NoPage::Absent);
            }
            if !self.claimed.borrow_mut().insert(pfn) {
                return Err(NoPage::Claimed);
            }
        }
        Ok(())
    }

    /// How many pages were claimed.
    pub fn count(&self) -> usize {
        self.claimed.borrow().len()
    }
}

impl<'m> Memory for Claims<'m> {
    type Page = &'m Block;
    type Error = NoPage;

    fn page(&self, at: Phys) -> Result<&'m Block, NoPage> {
        assert!(at.page_aligned(), "{at} was to be followed");
        let page = self.mem.pages.get(&at.get()).ok_or(NoPage::Absent)?;
        if self.claimed.borrow_mut().insert(at.pfn()) {
            Ok(page)
        } else {
            Err(NoPage::Claimed)
        }
    }
}

/// Memory in which a page can be had any number of times.
pub struct Shared<'m>(pub &'m PhysMem);

impl<'m> Memory for Shared<'m> {
    type Page = &'m Block;
    type Error = NoPage;

    fn page(&self, at: Phys) -> Result<&'m Block, NoPage> {
        self.0
            .pages
            .get(&at.get())
            .map(|page| &**page)
            .ok_or(NoPage::Absent)
    }
}

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
    /// `memfd-extents-v2`: header and extents. Counts and addresses are not looked at.
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
    let records: Vec<_> = extents.iter().map(ExtentRecord::new).collect();
    memfd.nr_extents = records.len() as u64;
    memfd.nr_pages = extents.iter().map(|extent| u64::from(extent.pages)).sum();
    memfd.extents = emit_chain(mem, &records, per_block);
    let at = mem.page();
    *MemfdHeader::of_mut(mem.block(at)).unwrap() = MemfdHeader::new(memfd);
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

/// The CRC-32C.
pub fn crc32c(sum: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(sum, bytes)
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

/// Takes over a handover without checks.
pub fn read(root: &Root, mem: &PhysMem) -> (Image, Vec<String>) {
    read_checked(root, None, mem)
}

/// Takes over a handover. What is wrong costs as little as can be, and is said in the list.
pub fn read_checked(root: &Root, spans: Option<&Spans>, mem: &PhysMem) -> (Image, Vec<String>) {
    let claims = Claims::new(mem);
    let mut wrong = Vec::new();
    let mut image = Image {
        number: root.number,
        ..Image::default()
    };
    let checks = spans.map(|spans| (spans.checks(&claims), spans));

    let mut sessions = Vec::new();
    let of_sessions = checks
        .as_ref()
        .map(|(checks, spans)| (checks, spans.sessions));
    let end =
        check::walk::<SessionRecord, _, _>(&claims, root.sessions, of_sessions, |index, record| {
            let Some(record) = record else {
                wrong.push(format!("session {index}: checksum does not match"));
                return Ok(());
            };
            let first = of_sessions
                .map(|(checks, span)| checks.link::<SessionRecord>(span, index).unwrap());
            match record.parse() {
                Ok(session) => sessions.push((session, first)),
                Err(error) => wrong.push(format!("session {index}: {error}")),
            }
            Ok(())
        });
    match end {
        Ok(walked) if walked.corrupt_header => wrong.push("session header".into()),
        Ok(walked) => assert!(of_sessions.is_none_or(|(_, span)| span.count == walked.records)),
        Err(error) => wrong.push(error.to_string()),
    }
    for (session, first) in sessions {
        let checks = checks.as_ref().zip(first).map(|((checks, _), first)| {
            let count = session.count;
            (checks, Span { count, first })
        });
        match read_files(&session, checks, mem, &claims) {
            Ok(files) => {
                if image.sessions.insert(session.name, files).is_some() {
                    wrong.push(format!("session {}: there twice", session.name));
                }
            }
            Err(error) => wrong.push(format!("session {}: {error}", session.name)),
        }
    }

    if let Some(at) = root.flbs {
        let checks = checks.as_ref().map(|(checks, spans)| (checks, spans.flbs));
        match read_flbs(at, checks, &claims, &mut wrong) {
            Ok(flbs) => image.flbs = flbs,
            Err(error) => wrong.push(error),
        }
    }
    (image, wrong)
}

fn read_files(
    session: &Session,
    checks: Option<(&Checks<Pages<'_>>, Span)>,
    mem: &PhysMem,
    claims: &Claims<'_>,
) -> Result<BTreeMap<u64, Content>, String> {
    let mut files = Vec::new();
    let mut bad = None;
    let walked = check::walk::<FileRecord, _, _>(claims, session.files, checks, |index, record| {
        let Some(record) = record else {
            // It costs that file alone.
            return Ok(());
        };
        record
            .parse()
            .map(|file| files.push(file))
            .map_err(|error| {
                bad = Some(format!("file {index}: {error}"));
                NoPage::Refused
            })
    })
    .map_err(|error| bad.take().unwrap_or_else(|| error.to_string()))?;
    session
        .check_total(walked.records)
        .map_err(|error| error.to_string())?;
    let mut contents = BTreeMap::new();
    for file in files {
        let content = read_file(&file, mem, claims)
            .map_err(|error| format!("token {}: {error}", file.token))?;
        if contents.insert(file.token, content).is_some() {
            return Err(format!("token {} is there twice", file.token));
        }
    }
    Ok(contents)
}

fn read_file(file: &File, mem: &PhysMem, claims: &Claims<'_>) -> Result<Content, String> {
    let page = |data: u64| {
        let at = Phys::new(data)
            .filter(|at| at.page_aligned())
            .ok_or_else(|| format!("{data:#x} is not an address"))?;
        claims.page(at).map_err(|error| format!("{at}: {error:?}"))
    };
    let compatible = file.compatible.as_cstr();
    if compatible == COMPATIBLE_EXTENTS {
        let header = MemfdHeader::of(page(file.data)?).unwrap();
        let memfd = header.parse().map_err(|error| error.to_string())?;
        read_extents(&memfd, claims).map(|extents| Content::Extents(Box::new(memfd), extents))
    } else if compatible == COMPATIBLE_V2 {
        let ser = MemfdV2::of(page(file.data)?).unwrap();
        let found = ser.parse().map_err(|error| error.to_string())?;
        read_v2(&found, mem, claims)
            .map(|folios| Content::V2(found.pos, found.size, found.seals, folios))
    } else {
        Ok(Content::Other(file.compatible, file.data))
    }
}

fn read_extents(memfd: &Memfd, claims: &Claims<'_>) -> Result<Vec<Extent>, String> {
    let mut check = ExtentCheck::new(memfd);
    let mut extents = Vec::new();
    let mut bad = None;
    walk::<ExtentRecord, _>(claims, memfd.extents, MAX_BLOCKS, |_, record| {
        check
            .check(record)
            .map(|extent| extents.push(extent))
            .map_err(|error| {
                bad = Some(error.to_string());
                NoPage::Refused
            })
    })
    .map_err(|error| bad.take().unwrap_or_else(|| error.to_string()))?;
    check.finish().map_err(|error| error.to_string())?;

    let mut runs: Vec<_> = extents.iter().map(Extent::run).collect();
    check_disjoint(&mut runs).map_err(|error| error.to_string())?;
    // What was accepted is inside the file, in order and apart, whatever the input was.
    let mut free_from = 0;
    for extent in &extents {
        assert!(extent.index >= free_from);
        assert!(extent.index < pages_for(memfd.size));
        free_from = extent.index + u64::from(extent.pages);
        claims
            .data(extent.run())
            .map_err(|error| format!("{}: {error:?}", extent.start))?;
    }
    Ok(extents)
}

fn read_v2(found: &FoundV2, mem: &PhysMem, claims: &Claims<'_>) -> Result<Vec<(u64, u64)>, String> {
    let mut check = FolioCheckV2::new(found);
    let mut folios = Vec::new();
    let mut left = usize::try_from(found.nr_folios).unwrap();
    let Some(area) = found.folios else {
        return Ok(folios);
    };
    let mut pages = Vec::new();
    vmalloc::walk(claims, &area, |at| {
        pages.push(claims.page(at)?);
        Ok(())
    })
    .map_err(|error| error.to_string())?;
    for page in pages {
        let here = left.min(FOLIOS_PER_PAGE);
        left -= here;
        for record in &FolioV2::in_page(page)[..here] {
            let Some(folio) = check.check(record).map_err(|error| error.to_string())? else {
                continue;
            };
            // The length of the folio is what happens to be there.
            let first = folio.start.pfn();
            let pages = (first..).take_while(|pfn| mem.data.contains(pfn)).count() as u64;
            claims
                .data(Run {
                    pfn: first,
                    pages: pages.max(1),
                })
                .map_err(|error| format!("{}: {error:?}", folio.start))?;
            check
                .restored(&folio, pages)
                .map_err(|error| error.to_string())?;
            folios.push((folio.index, pages));
        }
    }
    Ok(folios)
}

fn read_flbs(
    at: Phys,
    checks: Option<(&Checks<Pages<'_>>, Span)>,
    claims: &Claims<'_>,
    wrong: &mut Vec<String>,
) -> Result<BTreeMap<Compatible, (u64, u64)>, String> {
    let page = claims
        .page(at)
        .map_err(|error| format!("{at}: {error:?}"))?;
    let page = FlbBlock::ref_from_bytes(page.as_bytes()).unwrap();
    let mut flbs = BTreeMap::new();
    let mut whole = Vec::new();
    match checks {
        None => whole.extend(page.records().map_err(|error| error.to_string())?),
        Some((checks, span)) => {
            for (index, record) in (0..).zip(page.records_of(span)) {
                match checks.record_is_whole(span, index, record) {
                    true => whole.push(record),
                    false => wrong.push(format!("FLB {index}: checksum does not match")),
                }
            }
        }
    }
    for record in whole {
        let flb = record.parse().map_err(|error| error.to_string())?;
        if flbs.insert(flb.name, (flb.data, flb.count)).is_some() {
            return Err(format!("FLB {} is there twice", flb.name));
        }
    }
    Ok(flbs)
}

/// A device tree that is nothing but its properties.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapTree {
    path: Vec<String>,
    pub properties: HashMap<(String, String), Vec<u8>>,
}

impl MapTree {
    pub fn set(&mut self, node: &CStr, name: &CStr, value: &[u8]) {
        let key = (text(node), text(name));
        self.properties.insert(key, value.to_vec());
    }

    pub fn remove(&mut self, node: &CStr, name: &CStr) {
        self.properties.remove(&(text(node), text(name)));
    }
}

fn text(string: &CStr) -> String {
    string.to_string_lossy().into_owned()
}

impl Tree for MapTree {
    fn property(&self, node: &CStr, name: &CStr) -> Option<&[u8]> {
        self.properties
            .get(&(text(node), text(name)))
            .map(|value| &**value)
    }
}

impl TreeBuilder for MapTree {
    type Error = ();

    fn begin_node(&mut self, name: &CStr) -> Result<(), ()> {
        assert_eq!(self.path.is_empty(), name.is_empty());
        self.path.push(text(name));
        Ok(())
    }

    fn end_node(&mut self) -> Result<(), ()> {
        self.path.pop().map(|_| ()).ok_or(())
    }

    fn property(&mut self, name: &CStr, value: &[u8]) -> Result<(), ()> {
        let path = match &*self.path.join("/") {
            "" => "/".to_string(),
            path => path.to_string(),
        };
        self.properties.insert((path, text(name)), value.to_vec());
        Ok(())
    }
}

/// A compatible string.
pub fn compatible(text: &str) -> Compatible {
    Compatible::from_str_bytes(text.as_bytes()).unwrap()
}

/// A session's name.
pub fn session_name(text: &str) -> SessionName {
    SessionName::from_str_bytes(text.as_bytes()).unwrap()
}

/// A memfd without content.
pub fn memfd(size: u64) -> Memfd {
    Memfd {
        pos: 0,
        size,
        seals: 0,
        open: OpenFlags::from_bits(OpenFlags::READ | OpenFlags::WRITE).unwrap(),
        mode: 0o777,
        uid: 0,
        gid: 0,
        name: Some(FileName::from_str_bytes(b"memfd:test").unwrap()),
        nr_extents: 0,
        nr_pages: 0,
        extents: None,
        late: None,
        poisoned: false,
    }
}

/// How often proptest tries: seldom where each try is slow.
pub fn cases(usual: u32) -> proptest::test_runner::Config {
    proptest::test_runner::Config {
        cases: if cfg!(miri) { 3 } else { usual },
        failure_persistence: None,
        ..Default::default()
    }
}
