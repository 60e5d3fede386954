// SPDX-License-Identifier: GPL-2.0

//! Takes a handover over as a new kernel would, and lists what is wrong with it.

use super::{
    crc32c,
    Claims,
    Content,
    Image,
    NoPage,
    Pages, //
    PhysMem,
    Spans,
    MAX_BLOCKS,
};
use luo_abi::{
    chain::{
        walk_summed,
        Memory, //
    },
    check::{
        self,
        Checks,
        Span, //
    },
    flb::FlbBlock,
    memfd::{
        check_disjoint,
        Extent,
        ExtentCheck,
        FolioCheckV2,
        FolioV2,
        FoundV2,
        Memfd,
        MemfdHeader,
        MemfdV2,
        Run,
        SummedExtentRecord,
        COMPATIBLE_EXTENTS,
        COMPATIBLE_V2, //
    },
    memfd_v2::FOLIOS_PER_PAGE,
    name::Compatible,
    phys::pages_for,
    root::Root,
    session::{
        File,
        FileRecord,
        Session,
        SessionRecord, //
    },
    vmalloc,
    Phys, //
};
use std::collections::BTreeMap;
use zerocopy::{
    FromBytes,
    IntoBytes, //
};

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
        let memfd = header
            .verify(crc32c)
            .and_then(|()| header.parse())
            .map_err(|error| error.to_string())?;
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
    let visit = |_, record: &SummedExtentRecord| {
        check
            .check(&record.0)
            .map(|extent| extents.push(extent))
            .map_err(|error| {
                bad = Some(error.to_string());
                NoPage::Refused
            })
    };
    walk_summed(claims, memfd.extents, MAX_BLOCKS, crc32c, visit)
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
