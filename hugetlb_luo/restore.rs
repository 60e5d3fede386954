// SPDX-License-Identifier: GPL-2.0

//! Restoring a file of huge pages: its description is validated without a change, then its folios
//! are claimed and put into a new file.

use kernel::{
    crc32c::crc32c,
    fs::File,
    hugetlb::{
        self,
        HugeFilling,
        NewHugeMemfd, //
    },
    kho::{
        self,
        Unclaimed, //
    },
    liveupdate,
    prelude::*,
    sync::aref::ARef, //
};

use super::{
    abi::{
        block::Record,
        chain::{
            self,
            Fault, //
        },
        extent::SummedExtentRecord,
        hugetlb::{
            HugeExtentCheck,
            HugetlbHeader,
            HugetlbMemfd,
            ReservedCheck,
            ReservedRange,
            ReservedRecord, //
        },
        memfd::Extent,
        Block,
        Memory,
        Phys, //
    },
    attributes::Attributes,
    late,
    lists::{
        list_extents,
        list_ranges,
        Lists, //
    },
    memory::{
        ClaimMemory,
        CopyMemory, //
    },
    report::{
        address,
        bad_header,
        malformed,
        not_there, //
    }, //
};

/// The validated description of an incoming file.
pub(super) struct Description {
    memfd: HugetlbMemfd,
    /// In the order of the file.
    extents: KVVec<Extent>,
    reserved: KVVec<ReservedRange>,
    /// The late folios that are in no extent.
    late: KVec<Extent>,
    folios: usize,
}

impl Description {
    /// Reads and validates the description, and claims nothing.
    pub(super) fn read(header: &Unclaimed<Block>) -> Result<Self> {
        let memfd = read_header(header)?;
        let mut this = Self {
            memfd,
            extents: read_extents(&CopyMemory, &memfd)?,
            reserved: read_reserved(&CopyMemory, &memfd)?,
            late: KVec::new(),
            folios: 0,
        };

        this.take_late(header.phys().get())?;
        for folio in this.folios() {
            find(&folio)?;
        }
        this.folios = this.folios().count();
        Ok(this)
    }

    /// Reads the late folios. One that was inserted while the file was frozen may be in an extent,
    /// too.
    fn take_late(&mut self, file: u64) -> Result {
        let Some(list) = self.memfd.late else {
            return Ok(());
        };

        for folio in &late::of_file(list, file)? {
            let missing = self.memfd.is_missing(folio, &self.extents);
            if missing.map_err(malformed)? {
                self.late.push(*folio, GFP_KERNEL)?;
            }
        }
        Ok(())
    }

    /// What the header says, if late folios were in extents.
    pub(super) fn without_late(&self) -> HugetlbMemfd {
        let late = self.late.iter().map(|folio| u64::from(folio.pages));

        HugetlbMemfd {
            nr_pages: self.memfd.nr_pages.saturating_add(late.sum()),
            late: None,
            ..self.memfd
        }
    }

    /// Lists all of it anew, late folios among the extents.
    pub(super) fn list(&self) -> Result<Lists> {
        let mut extents = KVVec::new();

        for extent in Iterator::chain(self.extents.iter(), self.late.iter()) {
            extents.push(*extent, GFP_KERNEL)?;
        }
        extents.sort_unstable_by_key(|extent| extent.index);
        Ok(Lists {
            extents: list_extents(extents.iter().copied().map(Ok))?,
            reserved: list_ranges(&self.reserved)?,
        })
    }

    /// All folios.
    pub(super) fn folios(&self) -> impl Iterator<Item = Extent> + '_ {
        let extents = Iterator::chain(self.extents.iter(), self.late.iter());
        extents.flat_map(|extent| extent.pieces())
    }

    /// Makes the file, and what it needs beside its memory.
    ///
    /// # Errors
    ///
    /// - [`ENODEV`] if this kernel has no pages of that size.
    /// - [`ENOMEM`] if the pool has not enough pages for the reservations.
    /// - [`ENOSPC`] if the control group of the task may not have so many.
    pub(super) fn make(&self) -> Result<HugeFilling> {
        let memfd = &self.memfd;
        let attributes = Attributes {
            position: memfd.pos,
            size: memfd.size,
            seals: memfd.seals,
            mode: memfd.mode,
            owner: Some((memfd.uid, memfd.gid)),
            open: memfd.open,
            name: memfd.name,
            poisoned: false,
        };

        let file = NewHugeMemfd::new(attributes.name(), memfd.order.into()).inspect_err(|e| {
            if *e == ENODEV {
                pr_err!(
                    "this kernel has no huge pages of {} KiB\n",
                    4_u64 << memfd.order
                );
            }
        })?;
        let mut file = attributes.build(file)?;
        self.reserve(&mut file)?;

        // At the reboot, no task may be charged for what it did not ask for.
        file.fill(self.folios, !liveupdate::is_rebooting())
            .inspect_err(|e| {
                if *e == ENOSPC {
                    pr_err!(
                        "the control group may not have {} huge pages\n",
                        self.folios
                    );
                }
            })
    }

    /// Reserves pages in the holes for which there was a reservation. At the reboot, the file is
    /// only made to be handed over again, and one that cannot be made is lost.
    fn reserve(&self, file: &mut NewHugeMemfd) -> Result {
        for range in &self.reserved {
            let end = range.index + range.pages;
            let mut at = range.index;

            loop {
                let inside = |folio: &&Extent| at <= folio.index && folio.index < end;
                let next = self.late.iter().filter(inside).map(|late| late.index).min();
                let stop = next.unwrap_or(end);

                let pages = at >> self.memfd.order..stop >> self.memfd.order;
                if let Err(e) = file.reserve(pages.clone()) {
                    let count = pages.end - pages.start;
                    pr_err!("the pool has no {} huge pages for a reservation\n", count);
                    if !liveupdate::is_rebooting() {
                        return Err(e);
                    }
                }
                match next {
                    Some(index) => at = index + (1 << self.memfd.order),
                    None => break,
                }
            }
        }
        Ok(())
    }

    /// Claims the folios and puts them into `file`. The description goes away.
    pub(super) fn fill(
        self,
        mut file: HugeFilling,
        header: Unclaimed<Block>,
    ) -> Result<ARef<File>> {
        let mut result = Ok(());

        for folio in self.folios() {
            let at = address(folio.start)?;
            match result {
                Ok(()) => result = file.insert(at, folio.index >> self.memfd.order),
                // The file is not complete: the rest is freed.
                Err(_) => drop(hugetlb::discard(at, self.memfd.order.into())),
            }
        }
        self.drop_lists(header);
        result?;
        Ok(file.into_file())
    }

    /// Frees all folios, and the description.
    fn discard(self, header: Unclaimed<Block>) -> Result {
        let mut result = Ok(());

        for folio in self.folios() {
            let freed = hugetlb::discard(address(folio.start)?, self.memfd.order.into());
            result = result.and(freed);
        }
        self.drop_lists(header);
        result
    }

    /// Frees the description.
    fn drop_lists(&self, header: Unclaimed<Block>) {
        // What is not there need not be freed.
        drop(read_extents(&ClaimMemory, &self.memfd));
        drop(read_reserved(&ClaimMemory, &self.memfd));
        if let Some(list) = self.memfd.late {
            late::finished(list);
        }
        drop(header);
    }
}

/// Frees all that is left of an incoming file: nothing, if its description is corrupt anywhere.
pub(super) fn discard(header: Unclaimed<Block>) {
    let freed = match Description::read(&header) {
        Ok(description) => description.discard(header),
        Err(e) => {
            header.into_phys();
            Err(e)
        }
    };
    if freed.is_err() {
        pr_warn!("memory of a memfd that was not retrieved stays reserved\n");
    }
}

/// Reads the header.
pub(super) fn read_header(header: &Unclaimed<Block>) -> Result<HugetlbMemfd> {
    let page = header.copy().map_err(|e| not_there(e, header.phys()))?;

    HugetlbHeader::of(&page)
        .ok_or(EINVAL)?
        .parse(crc32c)
        .map_err(bad_header)
}

fn read_extents(mem: &impl Memory<Error = Error>, memfd: &HugetlbMemfd) -> Result<KVVec<Extent>> {
    let mut check = HugeExtentCheck::new(memfd);
    let mut extents = KVVec::new();

    walk(
        mem,
        memfd.extents,
        memfd.nr_extents,
        |record: &SummedExtentRecord| {
            let extent = check.check(&record.0).map_err(malformed)?;
            Ok(extents.push(extent, GFP_KERNEL)?)
        },
    )?;
    check.finish().map_err(malformed)?;
    Ok(extents)
}

fn read_reserved(
    mem: &impl Memory<Error = Error>,
    memfd: &HugetlbMemfd,
) -> Result<KVVec<ReservedRange>> {
    let mut check = ReservedCheck::new(memfd);
    let mut ranges = KVVec::new();

    walk(
        mem,
        memfd.reserved,
        memfd.nr_reserved,
        |record: &ReservedRecord| {
            let range = check.check(record).map_err(malformed)?;
            Ok(ranges.push(range, GFP_KERNEL)?)
        },
    )?;
    check.finish().map_err(malformed)?;
    Ok(ranges)
}

/// Goes through a chain of blocks. If `mem` claims them, they are freed.
fn walk<R: Record>(
    mem: &impl Memory<Error = Error>,
    first: Option<Phys>,
    records: u64,
    mut visit: impl FnMut(&R) -> Result,
) -> Result {
    // Full blocks, except perhaps for the last.
    let blocks = usize::try_from(records)?.div_ceil(Block::capacity::<R>());

    chain::walk_summed(mem, first, blocks, crc32c, |_, record| visit(record))
        .map(|_| ())
        .map_err(|e| match e.fault {
            Fault::Visit(cause) | Fault::Memory(cause) => cause,
            Fault::Sum => {
                malformed(e);
                EUCLEAN
            }
            _ => malformed(e),
        })
}

/// Checks that a folio is there, and leaves it there.
///
/// # Errors
///
/// [`EHWPOISON`] if one of its pages is poisoned: there is no huge page then.
fn find(folio: &Extent) -> Result {
    let at = address(folio.start)?;
    let order = kho::preserved_order(at).map_err(|e| not_there(e, at))?;

    if 1_u32.checked_shl(order) != Some(folio.pages) {
        return Err(not_there(EMSGSIZE, at));
    }
    let size = usize::try_from(folio.pages)? << kernel::page::PAGE_SHIFT;
    if kho::is_poisoned(at, size) {
        malformed(format_args!(
            "a page of the huge page at {at:?} is poisoned"
        ));
        return Err(EHWPOISON);
    }
    Ok(())
}
