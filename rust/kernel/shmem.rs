// SPDX-License-Identifier: GPL-2.0

//! Files of shared memory (memfd): looking at them, holding their pages, building them anew.
//!
//! - [`Memfd`] is a view of an open file that is one.
//! - [`FrozenMapping`] keeps such a file from changing its size and from losing pages, as long as
//!   it lives, and [`RecordedMapping`] has those listed that are inserted late; [`Pins`] goes through
//!   the pages that are there and brings them where they may stay for long. The result are
//!   [`PinnedExtent`]s, which [`PreservedExtents`] and [`SharedExtents`] promise to the next
//!   kernel. Each of them undoes itself when it is dropped.
//! - [`FrozenMapping::gather`] moves pages together that lie apart.
//! - [`NewMemfd`] is a file that nobody has seen yet and that [`Filling`] puts pages into.
//!
//! All functions here may sleep, and take no lock beyond their own call.
//!
//! C headers: [`include/linux/shmem_fs.h`](srctree/include/linux/shmem_fs.h),
//! [`include/linux/memfd.h`](srctree/include/linux/memfd.h).

use crate::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    fs::File,
    kho::{
        PhysAddr,
        RestoredFolio, //
    },
    page::PAGE_SHIFT,
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};
use core::{
    mem::MaybeUninit,
    ops::{
        Deref,
        Range, //
    },
    ptr::{
        addr_of,
        NonNull, //
    },
    slice, //
};

mod gather;
mod insert;
mod record;

pub use record::{
    Journal,
    RecordedMapping, //
};

use gather::{
    scattered,
    Mover, //
};

/// The largest size of, and position in, a file.
pub const MAX_SIZE: u64 = i64::MAX as u64;

/// A number that two open files have in common exactly if they are the same file underneath.
pub fn inode_id(file: &File) -> usize {
    // SAFETY: The file is valid. Its inode never changes.
    unsafe { (*file.as_ptr()).f_inode as usize }
}

/// An open file of shared memory that stands in no directory, as `memfd_create()` makes them.
///
/// # Invariants
///
/// The file belongs to shmem.
#[repr(transparent)]
pub struct Memfd(File);

// SAFETY: A `Memfd` is a `File` in all respects.
unsafe impl AlwaysRefCounted for Memfd {
    fn inc_ref(&self) {
        self.0.inc_ref();
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: By the requirements of this function; the layout is that of a `File`.
        unsafe { File::dec_ref(obj.cast()) };
    }
}

impl Deref for Memfd {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Memfd {
    /// Sees `file` as a memfd, if it is one. Those on huge pages of `hugetlbfs` are none.
    pub fn from_file(file: &File) -> Option<&Self> {
        // SAFETY: The file is valid, and so is its inode. The number of links is a plain number.
        let unlinked = unsafe { (*(*file.as_ptr()).f_inode).__bindgen_anon_1.i_nlink } == 0;
        // SAFETY: The file is valid.
        let shmem = unsafe { bindings::shmem_file(file.as_ptr()) };

        // INVARIANT: The file belongs to shmem.
        // SAFETY: The layout of a `Memfd` is that of a `File`.
        (shmem && unlinked).then(|| unsafe { &*core::ptr::from_ref(file).cast() })
    }

    fn inode(&self) -> *mut bindings::inode {
        // SAFETY: The file is valid. Its inode never changes.
        unsafe { (*self.as_ptr()).f_inode }
    }

    fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: The inode is valid. The mapping of an inode of shmem never changes.
        unsafe { (*self.inode()).i_mapping }
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        // SAFETY: The inode is valid.
        let size = unsafe { bindings::i_size_read(self.inode()) };
        u64::try_from(size).unwrap_or(0)
    }

    /// The position, which may change at any time.
    pub fn position(&self) -> u64 {
        // SAFETY: The file is valid. This is meant as a `READ_ONCE()`.
        let position = unsafe { addr_of!((*self.as_ptr()).f_pos).read_volatile() };
        u64::try_from(position).unwrap_or(0)
    }

    /// The seals: a set of `F_SEAL_*`, which may become larger at any time.
    pub fn seals(&self) -> u32 {
        // SAFETY: The file is valid and belongs to shmem. This is meant as a `READ_ONCE()`.
        unsafe { addr_of!((*bindings::SHMEM_I(self.inode())).seals).read_volatile() }
    }

    /// The permissions, without the type of the file.
    pub fn mode(&self) -> u32 {
        // SAFETY: The inode is valid. This is meant as a `READ_ONCE()`.
        let mode = unsafe { addr_of!((*self.inode()).i_mode).read_volatile() };
        u32::from(mode) & bindings::S_IALLUGO
    }

    /// User and group that own the file, as seen by the initial user namespace.
    pub fn owner(&self) -> (u32, u32) {
        let inode = self.inode();
        // SAFETY: The inode is valid. These are meant as `READ_ONCE()`s.
        unsafe {
            (
                addr_of!((*inode).i_uid.val).read_volatile(),
                addr_of!((*inode).i_gid.val).read_volatile(),
            )
        }
    }

    /// Whether something else than mode and seals says who may do what: an access control list, or
    /// that the file is immutable or for appending only.
    pub fn has_other_restrictions(&self) -> bool {
        let inode = self.inode();
        // SAFETY: The inode is valid. This is meant as a `READ_ONCE()`.
        let flags = unsafe { addr_of!((*inode).i_flags).read_volatile() };

        #[cfg(CONFIG_FS_POSIX_ACL)]
        // SAFETY: The inode is valid. This is meant as a `READ_ONCE()`; the list is not followed.
        // Shmem keeps it there; an odd number stands for one that is elsewhere.
        let acl = unsafe { addr_of!((*inode).i_acl).read_volatile() } as usize;
        #[cfg(not(CONFIG_FS_POSIX_ACL))]
        let acl = 0;

        flags & (bindings::S_IMMUTABLE | bindings::S_APPEND) != 0 || (acl != 0 && acl % 2 == 0)
    }

    /// How many bytes the name has at the moment.
    pub fn name_len(&self) -> usize {
        // SAFETY: The file is valid, and has had its dentry since it was opened.
        unsafe { bindings::dentry_name_len((*self.as_ptr()).__bindgen_anon_1.f_path.dentry) }
    }

    /// Does something with the name, which begins with `memfd:` if `memfd_create()` made the file.
    pub fn with_name<T>(&self, act: impl FnOnce(&CStr) -> T) -> T {
        let mut snapshot = MaybeUninit::<bindings::name_snapshot>::uninit();
        let snapshot = snapshot.as_mut_ptr();

        // SAFETY: The file is valid, and has had its dentry since it was opened. The snapshot,
        // which may point into itself, stays where it is; it is initialized by the first call, and
        // until the last holds a name of that length, which has no NUL but the one behind it.
        unsafe {
            let dentry = (*self.as_ptr()).__bindgen_anon_1.f_path.dentry;
            bindings::take_dentry_name_snapshot(snapshot, dentry);
            let name = &(*snapshot).name;
            let len = name.__bindgen_anon_1.__bindgen_anon_1.len as usize;
            let text = slice::from_raw_parts(name.name, len + 1);
            let result = act(CStr::from_bytes_with_nul_unchecked(text));
            bindings::release_dentry_name_snapshot(snapshot);
            result
        }
    }
}

/// The lock of an inode, held.
///
/// # Invariants
///
/// We hold the lock.
struct InodeLock<'a>(&'a Memfd);

impl<'a> InodeLock<'a> {
    fn new(memfd: &'a Memfd) -> Self {
        // SAFETY: The inode is valid.
        unsafe { bindings::inode_lock(memfd.inode()) };
        // INVARIANT: The lock was just taken.
        Self(memfd)
    }
}

impl Drop for InodeLock<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant we hold the lock.
        unsafe { bindings::inode_unlock(self.0.inode()) };
    }
}

/// A memfd that can neither grow nor shrink nor lose pages, until this is dropped.
///
/// It can still be written to within its size, and so pages can still appear in holes. They come from
/// where they can stay for long, as with somebody who pins memory for a device: not from KHO's areas,
/// from which they would have to be moved at the kexec.
///
/// # Invariants
///
/// The mapping is frozen, by us.
pub struct FrozenMapping {
    memfd: ARef<Memfd>,
}

impl FrozenMapping {
    /// Freezes the mapping of `memfd`.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if it is frozen already.
    pub fn new(memfd: &Memfd) -> Result<Self> {
        let _lock = InodeLock::new(memfd);

        // SAFETY: The inode belongs to shmem, and its lock is held.
        unsafe {
            if bindings::shmem_frozen(memfd.inode()) {
                return Err(EBUSY);
            }
            bindings::shmem_freeze(memfd.inode(), true);
        }

        // INVARIANT: It was not frozen before, and is now.
        Ok(Self {
            memfd: memfd.into(),
        })
    }

    /// How many pages there are: of the file, of what lies behind its end, and on swap.
    ///
    /// While user space runs, the number may have changed by the time it is returned.
    pub fn populated_pages(&self) -> u64 {
        // SAFETY: Inode and mapping are valid. These are meant as `READ_ONCE()`s.
        let (present, swapped) = unsafe {
            (
                addr_of!((*self.memfd.mapping()).nrpages).read_volatile(),
                addr_of!((*bindings::SHMEM_I(self.memfd.inode())).swapped).read_volatile(),
            )
        };
        present.saturating_add(swapped) as u64
    }

    /// Whether a page of the file is known to be poisoned. All that are there must be pinned.
    pub fn has_poison(&self) -> bool {
        // SAFETY: The mapping is valid, and belongs to shmem.
        unsafe { bindings::shmem_has_poison(self.memfd.mapping()) }
    }

    /// Goes through the pages that are there in a range of the file; see [`Pins`].
    ///
    /// What lies behind the end of the file is left out. A folio that lies only partly in the
    /// range counts as lying in it. Single pages that follow each other come as one, unless
    /// `runs` says that each shall come alone.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there can be no such range.
    pub fn pins(&self, range: Range<u64>, runs: bool) -> Result<Pins<'_>> {
        let end = range.end.min(self.memfd.size().div_ceil(1 << PAGE_SHIFT));

        Ok(Pins {
            mapping: self,
            max: if runs { RUN } else { 1 },
            at: usize::try_from(range.start)?,
            end: usize::try_from(end)?,
            present_until: 0,
            mover: None,
            moved_until: 0,
        })
    }
}

impl Deref for FrozenMapping {
    type Target = Memfd;

    fn deref(&self) -> &Memfd {
        &self.memfd
    }
}

impl Drop for FrozenMapping {
    fn drop(&mut self) {
        let _lock = InodeLock::new(&self.memfd);
        // SAFETY: The inode belongs to shmem, and its lock is held. We froze the mapping.
        unsafe { bindings::shmem_freeze(self.memfd.inode(), false) };
    }
}

/// How many pages are made fit at once that need it.
const BATCH: usize = 512;

/// How many pages are looked at in one go.
const SCAN: usize = 1 << 16;

/// Among how many pages those are looked for that must be moved.
const MOVED: usize = 1 << 13;

/// How many pages are pinned in one go.
const RUN: usize = 1 << 12;

/// How often the pinning of pages is tried again that must move, but are in use by somebody.
const MOVES: usize = 20;

/// Longer than somebody uses a page who copies to or from it.
const USE_TIME: Delta = Delta::from_micros(2_000);

/// Lets others run.
///
/// # Errors
///
/// [`EINTR`] if the task is being killed.
fn pause() -> Result {
    // SAFETY: Both are about the current task, which may sleep.
    unsafe {
        if bindings::fatal_signal_pending(bindings::get_current()) != 0 {
            return Err(EINTR);
        }
        bindings::cond_resched();
    }
    Ok(())
}

/// Goes through the pages that are there in a range of a memfd, and pins them.
///
/// Each folio is first brought into a state in which the next kernel can take it over: what is on
/// swap is read, what lies in memory from which it must go is moved, what was allocated but never
/// written is cleared, and all of it counts as dirty, so that no kernel takes it for something
/// that can be read again from elsewhere. Holes stay holes.
///
/// Memory for this is asked for without killing anybody: a shortage is an error.
///
/// C counterparts: `shmem_pin_runs()`, `shmem_make_pinnable()`.
pub struct Pins<'a> {
    mapping: &'a FrozenMapping,
    /// How many single pages may come as one.
    max: usize,
    at: usize,
    end: usize,
    /// Up to here there were pages without a hole when we looked.
    present_until: usize,
    /// Few files ever need it.
    mover: Option<KBox<Mover>>,
    /// Up to here the pages have been moved that can be, and had to.
    moved_until: usize,
}

impl Pins<'_> {
    /// The next pages, [`None`] at the end of the range.
    ///
    /// # Errors
    ///
    /// - [`EINTR`] if the task is being killed.
    /// - [`ENOMEM`] and others, if a page cannot be read from swap, or not be moved.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<PinnedExtent>> {
        let mut next = None;

        while self.pin::<1>(|extent| next = Some(extent))? && next.is_none() {}
        Ok(next)
    }

    /// Adds all pages to `extents`, with those that follow each other, in the file as in memory, as
    /// one.
    ///
    /// This is where long work can be interrupted, and where it lets others run.
    ///
    /// # Errors
    ///
    /// Those of [`Pins::next`].
    pub fn collect(mut self, extents: &mut KVVec<PinnedExtent>) -> Result {
        const AT_ONCE: usize = 64;

        let (first, before) = (self.at, extents.len());
        loop {
            if extents.capacity() - extents.len() < AT_ONCE {
                // As many as there will be if they go on as they began, but that says little yet.
                let runs = extents.len() - before;
                let pages = (self.at - first).checked_div(runs).unwrap_or(usize::MAX);
                let left = usize::try_from(self.mapping.populated_pages())?;
                let left = left.min(self.end.saturating_sub(self.at));
                let more = (left / pages.max(1)).min(32 * runs) + AT_ONCE;
                extents.reserve(more, GFP_KERNEL_ACCOUNT)?;
            }

            let mut merge = self.max > 1;
            let more = self.pin::<AT_ONCE>(|mut extent| {
                // Those that come together have been merged.
                if let (true, Some(last)) = (core::mem::take(&mut merge), extents.last_mut()) {
                    match last.append(extent) {
                        Ok(()) => return,
                        Err(other) => extent = other,
                    }
                }
                // There is room.
                let _ = extents.push_within_capacity(extent);
            })?;
            if !more {
                return Ok(());
            }
        }
    }

    /// Pins some pages, and gives them out in at most `N` extents. False at the end of the range.
    fn pin<const N: usize>(&mut self, mut give: impl FnMut(PinnedExtent)) -> Result<bool> {
        pause()?;
        if self.pin_runs::<N>(&mut give) {
            return Ok(true);
        }
        self.advance()
    }

    /// Pins pages at `at` that are fit for the next kernel as they are, as nearly all are. False if
    /// there are none.
    fn pin_runs<const N: usize>(&mut self, give: &mut impl FnMut(PinnedExtent)) -> bool {
        let mut runs = [const { MaybeUninit::<bindings::shmem_run>::uninit() }; N];
        let max = RUN.min(self.end.saturating_sub(self.at));

        // SAFETY: The mapping is valid, and belongs to shmem. There is room for `N` runs.
        let count = unsafe {
            bindings::shmem_pin_runs(
                self.mapping.memfd.mapping(),
                self.at,
                max,
                self.max,
                runs.as_mut_ptr().cast(),
                N,
            )
        };

        for run in runs.iter().take(count) {
            // SAFETY: The function has written the first `count` of them.
            let run = unsafe { run.assume_init_read() };
            // INVARIANT: That many single pages were pinned, which follow each other, in one zone;
            // or one folio of that order. In a frozen mapping they stay at their index.
            let extent = PinnedExtent {
                pfn: run.pfn,
                index: self.at,
                // Lossless: there are at most `RUN`, or as many as a folio has.
                pages: run.count as u32,
                order: run.order as u32,
            };
            self.at = extent.end_index();
            give(extent);
        }
        count > 0
    }

    /// Skips a hole, or else makes some pages from `at` on fit to be pinned. False at the end of the
    /// range.
    fn advance(&mut self) -> Result<bool> {
        if self.at >= self.present_until {
            return Ok(self.find());
        }
        // For a few pages it does not pay to look for more of their kind.
        if self.at >= self.moved_until && self.end.saturating_sub(self.at) > BATCH {
            self.move_away()?;
            return Ok(true);
        }

        for _ in 0..MOVES {
            match self.make_pinnable() {
                Err(EAGAIN) => {
                    pause()?;
                    fsleep(USE_TIME);
                }
                result => return result.map(|()| true),
            }
        }
        Err(ENOMEM)
    }

    /// Makes pages from `at` on fit to be pinned.
    fn make_pinnable(&self) -> Result {
        let end = self.end.min(self.present_until);
        let pages = BATCH.min(end.saturating_sub(self.at));

        // SAFETY: The mapping is valid, belongs to shmem, and is frozen: so there is still no hole
        // before `present_until`. The current task may sleep, as all users of this module.
        to_result(unsafe {
            bindings::shmem_make_pinnable(self.mapping.memfd.mapping(), self.at, pages)
        })
    }

    /// Moves pages from `at` on that cannot stay where they are.
    fn move_away(&mut self) -> Result {
        let mover = match &mut self.mover {
            Some(mover) => mover,
            none => none.insert(KBox::new(Mover::new()?, GFP_KERNEL)?),
        };
        let end = self.end.min(self.at.saturating_add(MOVED));

        self.moved_until = mover.move_away(self.mapping, self.at..end);
        Ok(())
    }

    /// Finds the next pages that are there, from `at` on. False if there are none.
    fn find(&mut self) -> bool {
        let mapping = self.mapping.memfd.mapping();
        let mut index = self.at;

        if index >= self.end {
            return false;
        }

        // SAFETY: The mapping is valid. What is found is not followed.
        let entry = unsafe {
            bindings::xa_find(
                &raw mut (*mapping).i_pages,
                &mut index,
                self.end - 1,
                bindings::XA_PRESENT,
            )
        };
        if entry.is_null() {
            return false;
        }

        // SAFETY: The mapping is valid, and belongs to shmem.
        let present =
            unsafe { bindings::shmem_count_present(mapping, index, SCAN.min(self.end - index)) };

        self.at = index;
        self.present_until = index + present.max(1);
        true
    }
}

/// Pages that follow each other in a file as they do in memory, and stay where they are.
///
/// It is either one large folio, or any number of single pages of one zone.
///
/// # Invariants
///
/// There are `pages` pages from the number `pfn` on. If `order` is 0, each of them is a folio, all
/// of one zone; else together they are one folio of that order. We own one pin on each folio.
pub struct PinnedExtent {
    pfn: usize,
    index: usize,
    pages: u32,
    order: u32,
}

impl PinnedExtent {
    /// The pages of one folio.
    ///
    /// # Safety
    ///
    /// `folio` must be valid, with a pin that the caller owns and that goes over. Its pages must stay
    /// in their file from `index` on.
    unsafe fn of_folio(folio: *mut bindings::folio, index: usize) -> Self {
        // SAFETY: The folio is valid, and is not split while it is pinned.
        let (pfn, order) = unsafe { (bindings::folio_pfn(folio), bindings::folio_order(folio)) };

        // INVARIANT: It is one folio, and the pin goes over.
        Self {
            pfn,
            index,
            pages: 1 << order,
            order,
        }
    }

    /// Where the first page is in memory.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if that is address zero, which could not be told from none.
    pub fn phys(&self) -> Result<PhysAddr> {
        PhysAddr::new((self.pfn as u64) << PAGE_SHIFT).ok_or(ENOMEM)
    }

    /// Where the first page is in the file.
    pub fn index(&self) -> u64 {
        self.index as u64
    }

    /// How many pages there are.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The order of the folio, if it is a large one; 0 for single pages.
    pub fn order(&self) -> u32 {
        self.order
    }

    fn end_index(&self) -> usize {
        self.index + self.pages as usize
    }

    /// Adds `next` behind our pages, or gives it back if it is not what follows them.
    pub fn append(&mut self, next: Self) -> Result<(), Self> {
        let Some(pages) = self.pages.checked_add(next.pages) else {
            return Err(next);
        };
        if self.end_index() != next.index || !self.is_followed_by(self.pages as usize, &next) {
            return Err(next);
        }

        // INVARIANT: The pages follow ours, are of our zone, and the pins on them go over.
        self.pages = pages;
        core::mem::forget(next);
        Ok(())
    }

    /// Whether `next` is in memory behind `pages` single pages that begin with ours, in the same
    /// zone: KHO restores no range that lies in two.
    fn is_followed_by(&self, pages: usize, next: &Self) -> bool {
        let follows = self.order == 0 && next.order == 0 && self.pfn + pages == next.pfn;

        // SAFETY: By the type invariants there are pages at these numbers.
        follows && unsafe { bindings::pfns_share_zone(self.pfn, next.pfn) }
    }
}

impl Drop for PinnedExtent {
    fn drop(&mut self) {
        // A large folio was pinned once.
        for pfn in (self.pfn..self.pfn + self.pages as usize).step_by(1 << self.order) {
            // SAFETY: By the type invariant there is a folio, and a pin on it is ours. The current
            // task may sleep, as all users of this module.
            unsafe {
                bindings::unpin_folio(bindings::pfn_folio(pfn));
                if pfn % RUN == 0 {
                    bindings::cond_resched();
                }
            }
        }
    }
}

/// A promise to the next kernel that it will find some pages. Dropping it takes it back.
///
/// # Invariants
///
/// The pages are preserved by KHO: as one folio if `order` is not 0, else as a range.
struct Promise {
    pfn: usize,
    pages: usize,
    order: u32,
}

impl Promise {
    /// C counterparts: `kho_preserve_pages()`, `kho_preserve_folio()`.
    fn new(pfn: usize, pages: usize, order: u32) -> Result<Self> {
        // SAFETY: KHO only takes down where the pages are. Those who call this own pins on them.
        to_result(unsafe {
            match order {
                0 => bindings::kho_preserve_pages(bindings::pfn_to_page(pfn), pages),
                _ => bindings::kho_preserve_folio(bindings::pfn_folio(pfn)),
            }
        })?;

        // INVARIANT: The pages have just been preserved.
        Ok(Self { pfn, pages, order })
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this is what was preserved.
        unsafe {
            match self.order {
                0 => bindings::kho_unpreserve_pages(bindings::pfn_to_page(self.pfn), self.pages),
                _ => bindings::kho_unpreserve_folio(bindings::pfn_folio(self.pfn)),
            }
        }
    }
}

/// Extents in the order in which they are in memory.
fn in_memory_order<'a>(
    extents: impl Iterator<Item = &'a PinnedExtent>,
) -> Result<KVVec<&'a PinnedExtent>> {
    let most = extents.size_hint().1.unwrap_or_default();
    let mut sorted = KVVec::with_capacity(most, GFP_KERNEL)?;

    for extent in extents {
        sorted.push_within_capacity(extent)?;
    }
    sorted.sort_unstable_by_key(|extent| extent.pfn);
    Ok(sorted)
}

/// Extents that follow each other in memory.
struct MemoryRun<'a> {
    first: &'a PinnedExtent,
    extents: usize,
    /// How many pages they all have.
    pages: usize,
}

impl MemoryRun<'_> {
    /// Counts an extent in, if it is what follows.
    fn append(&mut self, next: &PinnedExtent) -> bool {
        let follows = self.first.is_followed_by(self.pages, next);

        if follows {
            self.extents += 1;
            self.pages += next.pages as usize;
        }
        follows
    }
}

/// The runs of extents that come in the order of memory. If not `merge`, each is one by itself.
fn runs<'a>(extents: &[&'a PinnedExtent], merge: bool) -> Result<KVVec<MemoryRun<'a>>> {
    let mut runs = KVVec::<MemoryRun<'a>>::new();

    for first in extents {
        if !merge || !runs.last_mut().is_some_and(|run| run.append(first)) {
            let run = MemoryRun {
                first,
                extents: 1,
                pages: first.pages as usize,
            };
            runs.push(run, GFP_KERNEL)?;
        }
    }
    Ok(runs)
}

/// Promises runs of pinned extents.
fn promise(runs: &[MemoryRun<'_>]) -> Result<KVVec<Promise>> {
    let mut promises = KVVec::with_capacity(runs.len(), GFP_KERNEL_ACCOUNT)?;

    for run in runs {
        let promise = Promise::new(run.first.pfn, run.pages, run.first.order)?;
        promises.push(promise, GFP_KERNEL_ACCOUNT)?;
    }
    Ok(promises)
}

/// Extents that the next kernel will find, in the order of the file.
///
/// What follows each other in memory is promised as one, wherever it is in the file: KHO's work in
/// the next kernel grows with the number of blocks, and more than that. A next kernel that claims
/// each extent by itself cannot have that.
pub struct PreservedExtents {
    /// Whether what follows each other is promised as one.
    runs: bool,
    promises: KVVec<Promise>,
    extents: KVVec<PinnedExtent>,
}

impl PreservedExtents {
    /// None yet. `runs` says whether those that follow each other in memory become one promise.
    pub fn new(runs: bool) -> Self {
        Self {
            runs,
            promises: KVVec::new(),
            extents: KVVec::new(),
        }
    }

    /// Promises more extents to the next kernel, unless they lie apart in memory, in many short
    /// runs. Then nothing is pinned any more, and the answer is where in the file they are, to be
    /// [gathered](FrozenMapping::gather).
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]; nothing has been added then.
    pub fn add_unless_scattered(
        &mut self,
        more: KVVec<PinnedExtent>,
    ) -> Result<Option<KVVec<Range<usize>>>> {
        let order = in_memory_order(more.iter())?;
        let runs = runs(&order, self.runs)?;
        // If each is promised by itself, it does not matter where it is.
        let apart = self.runs.then(|| scattered(&order, &runs));
        if let Some(apart) = apart.transpose()?.flatten() {
            return Ok(Some(apart));
        }

        let promises = promise(&runs)?;
        drop((order, runs));
        self.push(more, promises)?;
        Ok(None)
    }

    /// Promises more extents to the next kernel.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]; nothing has been added then.
    pub fn add(&mut self, more: KVVec<PinnedExtent>) -> Result {
        let promises = promise(&runs(&in_memory_order(more.iter())?, self.runs)?)?;

        self.push(more, promises)
    }

    fn push(&mut self, more: KVVec<PinnedExtent>, promises: KVVec<Promise>) -> Result {
        if self.extents.is_empty() {
            self.extents = more;
            self.promises = promises;
            return Ok(());
        }

        self.promises.reserve(promises.len(), GFP_KERNEL_ACCOUNT)?;
        self.extents.reserve(more.len(), GFP_KERNEL_ACCOUNT)?;
        // From here on there is room.
        for promise in promises {
            self.promises.push(promise, GFP_KERNEL_ACCOUNT)?;
        }
        for extent in more {
            self.extents.push(extent, GFP_KERNEL_ACCOUNT)?;
        }
        self.extents.sort_unstable_by_key(|extent| extent.index);
        Ok(())
    }
}

impl Deref for PreservedExtents {
    type Target = [PinnedExtent];

    fn deref(&self) -> &[PinnedExtent] {
        &self.extents
    }
}

/// Extents of files of their own that are promised to the next kernel together, so that what
/// follows each other in memory is one block, whosever it is. The next kernel claims the pages one
/// by one, see [`RestoredPages::claim_shared`](crate::kho::RestoredPages::claim_shared).
///
/// There is a place for each extent.
pub struct SharedExtents {
    /// Of all extents, or none. Dropped first.
    promises: KVVec<Promise>,
    promised: bool,
    places: KVec<Option<PinnedExtent>>,
}

impl SharedExtents {
    /// That many places without an extent.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub fn new(places: usize) -> Result<Self> {
        let mut all = KVec::with_capacity(places, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..places {
            all.push(None, GFP_KERNEL_ACCOUNT)?;
        }

        Ok(Self {
            promises: KVVec::new(),
            promised: false,
            places: all,
        })
    }

    /// What is in a place.
    pub fn get(&self, place: usize) -> Option<&PinnedExtent> {
        self.places.get(place)?.as_ref()
    }

    /// Puts something else, or nothing, into a place, and takes back all promises.
    pub fn set(&mut self, place: usize, extent: Option<PinnedExtent>) {
        // First: what nobody pins must not be promised.
        self.promises.clear();
        self.promised = false;
        if let Some(at) = self.places.get_mut(place) {
            *at = extent;
        }
    }

    /// Promises all extents to the next kernel, if that has not been done.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]; nothing is promised then.
    pub fn promise(&mut self) -> Result {
        if self.promised {
            return Ok(());
        }

        let order = in_memory_order(self.places.iter().filter_map(Option::as_ref))?;
        self.promises = promise(&runs(&order, true)?)?;
        self.promised = true;
        Ok(())
    }
}

/// A memfd that nobody has seen yet.
///
/// It begins as `memfd_create()` makes it with `MFD_ALLOW_SEALING`: empty, without seals, open for
/// reading and writing, with all permissions for everybody.
///
/// # Invariants
///
/// Nobody else has a reference to the file.
pub struct NewMemfd(ARef<Memfd>);

impl NewMemfd {
    /// Makes a memfd. The `name` is taken as it is, so it should begin with `memfd:`.
    ///
    /// # Errors
    ///
    /// - [`ENFILE`] if the system has too many open files.
    /// - [`ENOMEM`] if memory is short, or [`ENOSPC`] if it is for an inode.
    ///
    /// C counterpart: `memfd_alloc_file()`.
    pub fn new(name: &CStr) -> Result<Self> {
        // SAFETY: `name` is a C string that the function copies.
        let file = from_err_ptr(unsafe {
            bindings::memfd_alloc_file(name.as_char_ptr(), bindings::MFD_ALLOW_SEALING)
        })?;

        // SAFETY: The function made a file of shmem, and a reference to it that is ours.
        unsafe { Self::from_raw(file) }
    }

    /// # Safety
    ///
    /// `file` must be null, or a file of shmem with one reference to it that nobody else has.
    unsafe fn from_raw(file: *mut bindings::file) -> Result<Self> {
        let file = NonNull::new(file).ok_or(ENOMEM)?;

        // INVARIANT: By the requirement of this function.
        // SAFETY: By the requirement of this function; the layout of a `Memfd` is that of a file.
        Ok(Self(unsafe { ARef::from_raw(file.cast()) }))
    }

    /// Sets the permissions.
    pub fn set_mode(&mut self, mode: u32) {
        const ALL: bindings::umode_t = bindings::S_IALLUGO as bindings::umode_t;

        let _lock = InodeLock::new(&self.0);
        let inode = self.0.inode();

        // SAFETY: The inode is valid, and locked.
        unsafe { (*inode).i_mode = ((*inode).i_mode & !ALL) | (mode as bindings::umode_t & ALL) };
    }

    /// Sets user and group that own the file, as seen by the initial user namespace.
    pub fn set_owner(&mut self, (uid, gid): (u32, u32)) {
        let _lock = InodeLock::new(&self.0);
        let inode = self.0.inode();

        // SAFETY: The inode is valid, and locked.
        unsafe {
            (*inode).i_uid.val = uid;
            (*inode).i_gid.val = gid;
        }
    }

    /// Sets the size in bytes. All of it is a hole.
    ///
    /// # Errors
    ///
    /// [`EFBIG`] if no file can have this size.
    pub fn set_size(&mut self, size: u64) -> Result {
        let size = i64::try_from(size).map_err(|_| EFBIG)?;
        let _lock = InodeLock::new(&self.0);

        // SAFETY: The inode is valid, and locked.
        unsafe { bindings::i_size_write(self.0.inode(), size) };
        Ok(())
    }

    /// Adds seals, a set of `F_SEAL_*`. They do not bind [`Filling`].
    ///
    /// With `F_SEAL_EXEC`, an executable file is sealed against all writing, too.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if there are unknown seals.
    /// - [`EPERM`] if the file is sealed against more seals, or not open for writing.
    ///
    /// C counterpart: `memfd_add_seals()`.
    pub fn add_seals(&mut self, seals: u32) -> Result {
        // SAFETY: The file is valid.
        to_result(unsafe { bindings::memfd_add_seals(self.0.as_ptr(), seals) })
    }

    /// Opens the same memory anew, with other flags: access mode and `O_*` of open files.
    ///
    /// # Errors
    ///
    /// - [`ENFILE`] if the system has too many open files.
    /// - [`ENOMEM`] if memory is short.
    /// - Any of a security module.
    pub fn reopen(self, flags: u32) -> Result<Self> {
        let file = self.0.as_ptr();

        // SAFETY: The file is valid, and so are its path and its credentials.
        let file = from_err_ptr(unsafe {
            bindings::dentry_open(
                &raw const (*file).__bindgen_anon_1.f_path,
                (flags | bindings::O_LARGEFILE) as c_int,
                (*file).f_cred,
            )
        })?;

        // SAFETY: The function opened the same inode, and the reference is ours.
        unsafe { Self::from_raw(file) }
    }

    /// Sets the position.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if no file can have this position.
    pub fn set_position(&mut self, position: u64) -> Result {
        let position = bindings::loff_t::try_from(position).map_err(|_| EINVAL)?;
        // SAFETY: The file is valid, and used by nobody else.
        let set = unsafe {
            bindings::vfs_setpos(self.0.as_ptr(), position, MAX_SIZE as bindings::loff_t)
        };

        if set == position {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }

    /// Begins to put pages into the file, and accounts for `pages` of them.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if the system's limits for memory are exceeded.
    pub fn fill(self, pages: usize) -> Result<Filling> {
        // The function takes a signed number on its way.
        isize::try_from(pages)?;

        // SAFETY: The inode is valid and belongs to shmem. By the type invariant nobody else has it.
        to_result(unsafe { bindings::shmem_restore_begin(self.0.inode(), pages) })?;
        // INVARIANT: The pages have just been accounted for.
        Ok(Filling {
            memfd: self,
            accounted: pages,
            left: pages,
        })
    }
}

/// A [`NewMemfd`] that pages are put into.
///
/// # Invariants
///
/// `shmem_restore_begin()` has accounted for `accounted` pages.
pub struct Filling {
    memfd: NewMemfd,
    /// For how many pages the file's account was charged, and how many of them are not there yet.
    accounted: usize,
    left: usize,
}

impl Filling {
    /// The finished file.
    pub fn into_file(self) -> ARef<File> {
        let file = self.memfd.0.clone();

        // What is left of the account is settled before anybody sees the file.
        drop(self);
        // SAFETY: The layout of a `Memfd` is that of a `File`, and the reference goes over.
        unsafe { ARef::from_raw(ARef::into_raw(file).cast()) }
    }

    /// The largest order of a folio that the file can hold.
    pub fn max_order(&self) -> u32 {
        // SAFETY: The mapping is valid.
        unsafe { bindings::mapping_max_folio_order(self.memfd.0.mapping()) }
    }

    /// Puts `folio` at the index `index`, which is counted in pages. It then counts as dirty.
    ///
    /// With `uptodate` false its content is not used: it reads as zeros.
    ///
    /// # Errors
    ///
    /// On error the folio is given to the page allocator.
    ///
    /// - [`EINVAL`] if a folio of its order cannot be at that index, or not in the file at all.
    /// - [`EEXIST`] if there is one already.
    /// - [`ENOSPC`] if there are more pages than were accounted for.
    ///
    /// A shortage of memory is no error: the folio is there already, and what is in it would be
    /// lost. For the same reason it is charged without reclaim: to the current task's control group,
    /// or to the nearest one above it that has room.
    pub fn insert(&mut self, folio: RestoredFolio, index: u64, uptodate: bool) -> Result {
        // SAFETY: The current task may sleep, as all users of this module.
        unsafe { bindings::cond_resched() };

        let index = usize::try_from(index)?;
        let order = folio.order();
        let pages = 1_usize << order;
        if order > self.max_order() || index % pages != 0 {
            return Err(EINVAL);
        }
        self.take(pages)?;

        let folio = folio.into_raw();
        // SAFETY: By the type invariant of `NewMemfd` nobody else has the file, and by ours it was
        // begun. By the type invariant of `RestoredFolio` the only reference to the folio is ours, and
        // its index suits its order.
        let result = to_result(unsafe {
            bindings::shmem_restore_folio(self.memfd.0.inode(), index, folio.as_ptr(), uptodate)
        });
        if result.is_err() {
            // SAFETY: The reference is still ours.
            unsafe { bindings::folio_put(folio.as_ptr()) };
        }
        result
    }

    /// Takes some pages from the account.
    fn take(&mut self, pages: usize) -> Result {
        self.left = self.left.checked_sub(pages).ok_or(ENOSPC)?;
        Ok(())
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it was begun with that number.
        unsafe { bindings::shmem_restore_end(self.memfd.0.inode(), self.accounted) };
    }
}
