// SPDX-License-Identifier: GPL-2.0

//! KHO's lists of the pages of an area.

mod common;

use common::{
    cases,
    emit_area,
    Claims,
    NoPage,
    PhysMem,
    Shared, //
};
use luo_abi::{
    block::Full,
    vmalloc::{
        walk,
        Area,
        Chunk,
        ListError,
        Vmalloc,
        VmallocError,
        CHUNK_CAPACITY,
        FLAG_ALLOC,
        FLAG_HUGE, //
    },
    Phys, //
};
use proptest::prelude::*;

fn phys(addr: u64) -> Phys {
    Phys::new(addr).unwrap()
}

/// An area of `runs` runs of `1 << order` pages, and their addresses.
fn area_of(mem: &mut PhysMem, runs: usize, order: u16) -> (Area, Vec<Phys>) {
    let runs: Vec<_> = (0..runs)
        .map(|_| Phys::from_pfn(mem.data(1 << order, 1 << order)).unwrap())
        .collect();
    (emit_area(mem, &runs, order), runs)
}

fn list(mem: &PhysMem, area: &Area) -> (Vec<Phys>, Result<(), ListError<NoPage>>) {
    let mut runs = Vec::new();
    let end = walk(&Claims::new(mem), area, |at| {
        runs.push(at);
        Ok(())
    });
    (runs, end)
}

#[test]
fn lists_of_every_length() {
    for runs in [1, 2, 510, 511, 512, 1022, 1023] {
        let mut mem = PhysMem::default();
        let (area, runs) = area_of(&mut mem, runs, 0);
        assert_eq!(list(&mem, &area), (runs, Ok(())));
    }
}

#[test]
fn larger_orders() {
    let mut mem = PhysMem::default();
    let (area, runs) = area_of(&mut mem, 3, 9);
    assert_eq!(area.pages, 3 * 512);
    assert_eq!(list(&mem, &area), (runs.clone(), Ok(())));

    let odd = phys(runs[0].get() + 4096);
    *Chunk::of_mut(mem.block(area.first)).unwrap() = {
        let mut page = PhysMem::default();
        let at = page.page();
        let chunk = Chunk::of_mut(page.block(at)).unwrap();
        chunk.push(odd).unwrap();
        zerocopy::FromBytes::read_from_bytes(zerocopy::IntoBytes::as_bytes(chunk)).unwrap()
    };
    assert_eq!(
        list(&mem, &area).1,
        Err(ListError::Format(VmallocError::Misaligned { at: odd }))
    );
}

#[test]
fn a_full_page() {
    let mut mem = PhysMem::default();
    let at = mem.page();
    let chunk = Chunk::of_mut(mem.block(at)).unwrap();
    for page in 1..=CHUNK_CAPACITY as u64 {
        chunk.push(phys(page << 12)).unwrap();
    }
    assert_eq!(chunk.push(phys(0x1000)), Err(Full));
    assert_eq!(chunk.runs().count(), CHUNK_CAPACITY);
    assert_eq!(chunk.next(), None);
    chunk.clear();
    assert_eq!(chunk.runs().count(), 0);
}

#[test]
fn a_list_too_long_or_too_short() {
    let mut mem = PhysMem::default();
    let (area, _) = area_of(&mut mem, 5, 0);
    let longer = Area { pages: 6, ..area };
    let shorter = Area { pages: 4, ..area };
    assert_eq!(
        list(&mem, &longer).1.unwrap_err().to_string(),
        "vmalloc list has 5 of 6 pages"
    );
    let (seen, end) = list(&mem, &shorter);
    assert_eq!(seen.len(), 4);
    assert_eq!(
        end.unwrap_err().to_string(),
        "vmalloc list is longer than 4 pages"
    );
}

#[test]
fn cycles_end() {
    let mut mem = PhysMem::default();
    let (area, _) = area_of(&mut mem, 5, 0);
    Chunk::of_mut(mem.block(area.first))
        .unwrap()
        .set_next(Some(area.first));
    let wide = Area {
        pages: u32::MAX,
        ..area
    };
    assert_eq!(
        list(&mem, &wide).1,
        Err(ListError::Memory {
            at: area.first,
            cause: NoPage::Claimed
        })
    );
    // Where the memory does not tell, the number of pages ends it,
    assert_eq!(
        walk(&Shared(&mem), &area, |_| Ok(())),
        Err(ListError::Format(VmallocError::TooMany { pages: 5 }))
    );
    // and where there are no pages, that does.
    let empty = mem.page();
    Chunk::of_mut(mem.block(empty))
        .unwrap()
        .set_next(Some(empty));
    let area = Area {
        first: empty,
        ..area
    };
    assert_eq!(
        walk(&Shared(&mem), &area, |_| Ok(())),
        Err(ListError::Format(VmallocError::EmptyChunk { at: empty }))
    );
}

#[test]
fn addresses_that_are_none() {
    let mut mem = PhysMem::default();
    let (area, _) = area_of(&mut mem, 1, 0);
    for (next, error) in [
        (
            0x1234,
            ListError::Format(VmallocError::Misaligned { at: phys(0x1234) }),
        ),
        (
            0x7777_7000,
            ListError::Memory {
                at: phys(0x7777_7000),
                cause: NoPage::Absent,
            },
        ),
    ] {
        Chunk::of_mut(mem.block(area.first))
            .unwrap()
            .set_next(Phys::new(next));
        assert_eq!(list(&mem, &area).1, Err(error));
    }
    let (area, _) = area_of(&mut mem, 1, 0);
    Chunk::of_mut(mem.block(area.first))
        .unwrap()
        .push(phys(0x1001))
        .unwrap();
    assert_eq!(
        list(&mem, &area).1.unwrap_err().to_string(),
        "vmalloc address 0x1001 is not aligned"
    );
}

#[test]
fn descriptors() {
    let area = Area {
        first: phys(0x1000),
        pages: 2,
        flags: FLAG_ALLOC | FLAG_HUGE,
        order: 0,
    };
    assert_eq!(Vmalloc::new(&area).parse(4097), Ok(area));
    assert_eq!(Vmalloc::new(&area).parse(8192), Ok(area));
    assert_eq!(
        Vmalloc::new(&area).parse(4096),
        Err(VmallocError::Pages {
            pages: 2,
            expected: 1
        })
    );
    assert_eq!(
        Vmalloc::new(&area).parse(u64::MAX).unwrap_err().to_string(),
        "vmalloc area of 2 pages where 4503599627370496 are needed"
    );
    assert!(Vmalloc::default().is_none());
    assert!(!Vmalloc::new(&area).is_none());
    assert_eq!(Vmalloc::default().parse(0), Err(VmallocError::NoList));

    let with = |change: fn(&mut Area)| {
        let mut area = area;
        change(&mut area);
        Vmalloc::new(&area).parse(8192)
    };
    assert_eq!(
        with(|area| area.first = phys(0x1800)),
        Err(VmallocError::Misaligned { at: phys(0x1800) })
    );
    assert_eq!(
        with(|area| area.flags = 4),
        Err(VmallocError::Flags { flags: 4 })
    );
    for order in [19, 63, 64, u16::MAX] {
        let mut area = area;
        area.order = order;
        assert_eq!(
            Vmalloc::new(&area).parse(8192),
            Err(VmallocError::Order { order })
        );
        // A walk does not depend on that having been checked.
        let mem = PhysMem::default();
        assert_eq!(
            list(&mem, &area).1,
            Err(ListError::Format(VmallocError::Order { order }))
        );
    }
    // Whole runs only.
    assert!(with(|area| area.order = 1).is_ok());
    assert!(with(|area| area.order = 2).is_err());
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn any_list(
        entries in prop::collection::vec((0_usize..511, any::<u64>(), 0_u64..8), 0..20),
        nexts in prop::array::uniform4(0_u64..6),
        pages in any::<u32>(),
        order in 0_u16..20,
    ) {
        let mut mem = PhysMem::default();
        let at: Vec<_> = nexts.iter().map(|_| mem.page()).collect();
        for (page, next) in at.iter().zip(nexts) {
            let next = at.get(next as usize).copied();
            Chunk::of_mut(mem.block(*page)).unwrap().set_next(next);
        }
        for (number, (slot, raw, small)) in entries.iter().enumerate() {
            let bytes = mem.bytes(at[number % 4]);
            let value = if small % 2 == 0 { *raw } else { small << 12 };
            bytes[8 + 8 * slot..16 + 8 * slot].copy_from_slice(&value.to_ne_bytes());
        }
        let area = Area { first: at[0], pages, flags: 0, order };
        let (seen, end) = list(&mem, &area);
        prop_assert!(seen.len() as u64 <= u64::from(pages));
        if end.is_ok() {
            prop_assert_eq!((seen.len() as u64) << order, u64::from(pages));
        }
    }
}
