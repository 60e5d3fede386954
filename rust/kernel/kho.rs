// SPDX-License-Identifier: GPL-2.0

//! Kexec Handover (KHO): memory that survives a kexec.
//!
//! The old kernel marks memory as preserved; the new kernel keeps it out of its allocators until
//! somebody claims it. Each side has an owner of its own here, and neither turns into the other:
//!
//! - [`Preserved`] is memory of this kernel that the next one will find. Dropping it takes the
//!   mark away and frees it.
//! - [`Unclaimed`] is the right to claim memory of the previous kernel, and [`Restored`] is the
//!   claimed memory. Dropping either gives it to the page allocator.
//! - [`Subtree`] is a [`Preserved`] that the next kernel can find by a name.
//!
//! All functions here may sleep, and may be called from early initcalls on.
//!
//! C header: [`include/linux/kexec_handover.h`](srctree/include/linux/kexec_handover.h).

use crate::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        static_mutex,
        StaticMutex, //
    },
    types::NotThreadSafe, //
};
use core::{
    fmt,
    marker::PhantomData,
    num::NonZeroU64,
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::NonNull, //
};

mod clocks;
#[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
mod corrupt;
mod pages;
mod pool;
mod preservation;
mod release;
mod unclaimed;
mod words;

use self::release::release;

pub use self::clocks::Clocks;
#[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
pub use self::corrupt::change_outgoing;
pub use self::pages::{
    check_pages,
    check_shared,
    copy_of,
    RestoredFolio,
    RestoredPages, //
};
pub(crate) use self::preservation::Preservation;
pub use self::unclaimed::{
    Address,
    HandedOn,
    Unclaimed, //
};
pub use self::words::PreservedWords;

/// Whether this kernel hands memory over and takes it over (`kho=` on the command line).
///
/// C counterpart: `kho_is_enabled()`.
pub fn is_enabled() -> bool {
    // SAFETY: The function only reads a flag and has no requirements.
    unsafe { bindings::kho_is_enabled() }
}

/// The page size of the previous kernel in bytes, if it handed something over and this kernel has
/// another one.
///
/// Such a kernel finds nothing that was handed over, and preserves nothing: it keeps everything for a
/// kernel that has the right page size.
///
/// C counterpart: `kho_other_page_size()`.
pub fn other_page_size() -> Option<usize> {
    // SAFETY: The function only reads a variable that is set early in boot.
    let size = unsafe { bindings::kho_other_page_size() };

    (size > 0).then_some(size)
}

/// The kexec lock, held: no kexec image is loaded or unloaded as long as this exists.
///
/// # Invariants
///
/// The current task holds the lock for `'a`.
pub struct KexecLock<'a>(PhantomData<&'a ()>, NotThreadSafe);

impl KexecLock<'_> {
    /// # Safety
    ///
    /// The current task must hold the kexec lock (`kexec_trylock()`) for `'a`, as in
    /// `kernel_kexec()`.
    pub unsafe fn assume_held() -> Self {
        // INVARIANT: By the requirement of this function the current task holds the lock for `'a`.
        Self(PhantomData, NotThreadSafe)
    }

    /// Whether the kexec image that is loaded would find what this kernel preserved.
    ///
    /// An image loaded by `kexec_file_load()` does; one loaded by `kexec_load()`, or none, does
    /// not.
    pub fn image_finds_preserved_memory(&self) -> bool {
        // SAFETY: The helper reads a global pointer and, if there is an image, a field of it. By
        // the type invariant the image stays.
        unsafe { bindings::kexec_image_has_kho() }
    }

    /// Whether the image that is loaded gets nothing because its pages have another size.
    pub fn image_has_other_page_size(&self) -> bool {
        // SAFETY: The helper reads a global pointer and, if there is an image, a field of it. By
        // the type invariant the image stays.
        unsafe { bindings::kexec_image_has_other_page_size() }
    }

    /// Checks that the image, if it finds what this kernel preserved, will have that memory, and
    /// know of all pages that are poisoned.
    ///
    /// # Errors
    ///
    /// With the reason, in words:
    ///
    /// - [`EOPNOTSUPP`] if the command line of the image leaves out, or overwrites, preserved
    ///   memory, or if it would not find what this kernel keeps for one with another page size.
    /// - [`EHWPOISON`] if it would not know of all poisoned pages.
    ///
    /// C counterpart: `kho_check_image()`.
    pub fn check_image(&self) -> Result<(), (Error, &'static CStr)> {
        let mut why = core::ptr::null();

        // SAFETY: By the type invariant the image stays. The reason is ours to write.
        to_result(unsafe { bindings::kho_check_loaded_image(&mut why) }).map_err(|e| {
            // SAFETY: After an error, this is a string constant.
            (e, unsafe { CStr::from_char_ptr(why) })
        })
    }

    /// What [`KexecLock::set_image_format`] said of the image that is loaded.
    pub fn image_format(&self) -> Option<ImageFormat> {
        // SAFETY: By the type invariant, an image that is there stays.
        let format = unsafe { bindings::kexec_has_image().then(|| bindings::kexec_image_format()) };

        match format? {
            1 => Some(ImageFormat::Fdt),
            2 => Some(ImageFormat::LuoV5),
            _ => None,
        }
    }

    /// Says which format the image reads that is loaded; [`None`] if that is not known, as of each
    /// image that has just been loaded.
    ///
    /// # Errors
    ///
    /// [`ENOENT`] if none is loaded.
    pub fn set_image_format(&self, format: Option<ImageFormat>) -> Result {
        // SAFETY: By the type invariant, an image that is there stays, and nobody else has access
        // to the field.
        unsafe {
            if !bindings::kexec_has_image() {
                return Err(ENOENT);
            }
            bindings::kexec_set_image_format(format.map_or(0, |format| format as u8));
        }
        Ok(())
    }
}

/// Which format of the Live Update Orchestrator an image reads.
#[derive(Copy, Clone, PartialEq, Eq)]
#[repr(u8)]
pub enum ImageFormat {
    /// A device tree, and `luo-v5` as well.
    Fdt = 1,
    /// `luo-v5` only.
    LuoV5 = 2,
}

/// The kexec lock, taken for the current task. Dropping it gives the lock back.
///
/// # Invariants
///
/// The current task holds the lock.
pub struct KexecGuard(KexecLock<'static>);

impl KexecGuard {
    /// Takes the lock; [`None`] if an image is just loaded or started. Does not sleep.
    ///
    /// C counterpart: `kexec_trylock()`.
    pub fn try_new() -> Option<Self> {
        // SAFETY: It may be called from anywhere.
        let held = unsafe { bindings::kexec_trylock() };

        // INVARIANT: The current task has just taken the lock, and `drop` gives it back. The token
        // does not outlive this: it is only lent out.
        // SAFETY: The lock is held, as `held` says.
        held.then(|| Self(unsafe { KexecLock::assume_held() }))
    }
}

impl Deref for KexecGuard {
    type Target = KexecLock<'static>;

    fn deref(&self) -> &KexecLock<'static> {
        &self.0
    }
}

impl Drop for KexecGuard {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the current task holds the lock, and this was all that would
        // give it back.
        unsafe { bindings::kexec_unlock() };
    }
}

/// A physical address that is handed over. Never zero: in the handover formats zero means none.
///
/// Having one says nothing about what is there; [`Restored::claim`] finds that out.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct PhysAddr(NonZeroU64);

impl PhysAddr {
    /// Makes an address of a number; [`None`] for zero.
    pub const fn new(address: u64) -> Option<Self> {
        match NonZeroU64::new(address) {
            Some(address) => Some(Self(address)),
            None => None,
        }
    }

    /// The address as a number.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Memory for one `T` that the next kernel will find where it is now.
///
/// It starts out zeroed. Whatever it holds when the kexec happens is what the next kernel reads.
/// The memory is physically contiguous, takes whole pages (a power of two of them), and begins
/// at a page border. What needs one page is beside others of that kind, so that the next kernel has
/// few regions to reserve.
///
/// # Invariants
///
/// `phys` is the start of memory that nothing else refers to, a page of the pool if a `T` fits into
/// one, else from `kho_alloc_preserve()`; `ptr` is where that is in the direct map. It holds an
/// initialized `T`.
pub struct Preserved<T: FromBytes + IntoBytes> {
    ptr: NonNull<T>,
    phys: PhysAddr,
}

// SAFETY: `Preserved` owns its `T` alone, like a box, so it may move with it.
unsafe impl<T: FromBytes + IntoBytes + Send> Send for Preserved<T> {}
// SAFETY: A shared `Preserved` gives out nothing but `&T`.
unsafe impl<T: FromBytes + IntoBytes + Sync> Sync for Preserved<T> {}

/// Allocates zeroed memory and marks it as preserved.
fn alloc_preserve(size: usize) -> Result<PhysAddr> {
    // SAFETY: The function has no requirements on its argument.
    let ptr = from_err_ptr(unsafe { bindings::kho_alloc_preserve(size) })?;
    // SAFETY: The memory comes from the page allocator and lies in the direct map.
    let phys = unsafe { bindings::virt_to_phys(ptr) };

    PhysAddr::new(phys).ok_or_else(|| {
        // Memory at address zero could not be told from none by the next kernel.
        // SAFETY: `ptr` is what `kho_alloc_preserve()` returned, used by nobody.
        unsafe { bindings::kho_unpreserve_free(ptr) };
        ENOMEM
    })
}

impl<T: FromBytes + IntoBytes> Preserved<T> {
    const IN_POOL: bool = size_of::<T>() <= PAGE_SIZE;

    /// Allocates zeroed memory and marks it as preserved.
    ///
    /// # Errors
    ///
    /// - [`ENOMEM`] if there is no memory, for the value or for KHO's own records.
    /// - [`E2BIG`] if `T` is larger than the page allocator's largest block.
    ///
    /// C counterpart: `kho_alloc_preserve()`.
    pub fn new() -> Result<Self> {
        const {
            assert!(size_of::<T>() > 0);
            assert!(align_of::<T>() <= PAGE_SIZE);
        }

        let phys = match Self::IN_POOL {
            true => pool::take()?,
            false => alloc_preserve(size_of::<T>())?,
        };
        // SAFETY: The memory is in the direct map.
        let ptr = unsafe { bindings::phys_to_virt(phys.get()) };

        // INVARIANT: The memory is fresh, page-aligned (thus aligned for `T`), large enough, and
        // zeroed, which is a valid `T` because of `FromBytes`.
        Ok(Self {
            ptr: NonNull::new(ptr.cast()).ok_or(ENOMEM)?,
            phys,
        })
    }

    /// Where the next kernel finds this memory.
    pub fn phys(&self) -> PhysAddr {
        self.phys
    }

    /// The same, with the type of what the next kernel finds there.
    pub fn address(&self) -> Address<T> {
        Address::of(self)
    }
}

impl<T: FromBytes + IntoBytes> Deref for Preserved<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the type invariant `ptr` points to a valid `T` that only `self` refers to.
        unsafe { self.ptr.as_ref() }
    }
}

impl<T: FromBytes + IntoBytes> DerefMut for Preserved<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the type invariant `ptr` points to a valid `T` that only `self` refers to.
        unsafe { self.ptr.as_mut() }
    }
}

impl<T: FromBytes + IntoBytes> Drop for Preserved<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the memory came from there, and nothing else refers to it.
        unsafe {
            match Self::IN_POOL {
                true => pool::put(self.phys),
                false => bindings::kho_unpreserve_free(self.ptr.as_ptr().cast()),
            }
        }
    }
}

/// Memory that the previous kernel preserved, claimed by this one and seen as a `T`.
///
/// Nothing is known about its content but that it is a valid `T`, as any bytes are.
///
/// # Invariants
///
/// `folio` is a reference to a folio that KHO restored for this value alone, at least
/// `size_of::<T>()` bytes large and in the direct map; `ptr` is its first byte.
pub struct Restored<T: FromBytes + IntoBytes> {
    folio: NonNull<bindings::folio>,
    ptr: NonNull<T>,
}

// SAFETY: `Restored` owns its `T` alone, like a box, so it may move with it.
unsafe impl<T: FromBytes + IntoBytes + Send> Send for Restored<T> {}
// SAFETY: A shared `Restored` gives out nothing but `&T`.
unsafe impl<T: FromBytes + IntoBytes + Sync> Sync for Restored<T> {}

impl<T: FromBytes + IntoBytes> Restored<T> {
    /// Claims the memory at `phys` from KHO.
    ///
    /// A claim succeeds once: afterwards the memory counts as an ordinary allocation of this
    /// kernel, and a second claim is refused. To keep it reserved forever without freeing it,
    /// [`core::mem::forget`] the value.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if `phys` is not the start of a page.
    /// - [`ENOENT`] if no preserved block starts there, or somebody has claimed it.
    /// - [`EMSGSIZE`] if the block that starts there is not as large as [`Preserved`] makes it for
    ///   a `T`.
    /// - [`EHWPOISON`] if a page of it is poisoned.
    /// - [`ENOMEM`] for the first claim of all, if memory is short.
    ///
    /// C counterpart: `kho_restore_folio()`.
    pub fn claim(phys: PhysAddr) -> Result<Self> {
        const {
            assert!(size_of::<T>() > 0);
            assert!(align_of::<T>() <= PAGE_SIZE);
        }

        let _claiming = CLAIMS.lock();

        // Each owner preserves its values one by one, so the block is as large as this takes.
        if preserved_size(phys)? != size_of::<T>().next_power_of_two().max(PAGE_SIZE) {
            return Err(EMSGSIZE);
        }
        if is_poisoned(phys, size_of::<T>()) {
            return Err(EHWPOISON);
        }

        // SAFETY: A preserved block starts at `phys`, as just checked, and nobody claims it in
        // between, as claims wait for each other.
        let folio = unsafe { bindings::kho_restore_folio(phys.get()) };
        let folio = NonNull::new(folio).ok_or(ENOENT)?;

        // SAFETY: We own a reference to the folio.
        let address = unsafe { bindings::folio_address(folio.as_ptr()) };
        let Some(ptr) = NonNull::new(address.cast()) else {
            // Memory outside the direct map, which no 64-bit kernel has.
            // SAFETY: We own a reference to the folio and do not use it any more.
            unsafe { bindings::folio_put(folio.as_ptr()) };
            return Err(EINVAL);
        };

        // INVARIANT: KHO gave the folio to us alone, and it is as large as checked above.
        Ok(Self { folio, ptr })
    }
}

impl<T: FromBytes + IntoBytes> Deref for Restored<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the type invariant `ptr` points to a `T` that only `self` refers to, valid
        // because any bytes are.
        unsafe { self.ptr.as_ref() }
    }
}

impl<T: FromBytes + IntoBytes> Drop for Restored<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the folio is in the direct map, and this was for us alone.
        unsafe { release(self.folio) };
    }
}

/// Serializes claims: KHO checks whether a block may be claimed, and claims it, in two steps.
static CLAIMS: StaticMutex<()> = static_mutex!((), "kho::CLAIMS");

/// The size in bytes of the preserved block that starts at `phys` and that nobody has claimed.
///
/// # Errors
///
/// - [`EINVAL`] if `phys` is not the start of a page.
/// - [`ENOENT`] if no preserved block starts there, or somebody has claimed it.
/// - [`EFBIG`] if the block is larger than any that the page allocator has.
pub fn preserved_size(phys: PhysAddr) -> Result<usize> {
    block_size(preserved_order(phys)?)
}

/// The size in bytes of a block of this order, which the page allocator must have.
fn block_size(order: u32) -> Result<usize> {
    match order {
        0..=bindings::MAX_PAGE_ORDER => Ok(PAGE_SIZE << order),
        _ => Err(EFBIG),
    }
}

/// The order of the preserved block that starts at `phys` and that nobody has claimed: it has 2^order
/// pages. It may be larger than any that the page allocator has.
///
/// # Errors
///
/// - [`EINVAL`] if `phys` is not the start of a page.
/// - [`ENOENT`] if no preserved block starts there, or somebody has claimed it.
///
/// C counterpart: `kho_preserved_order()`.
pub fn preserved_order(phys: PhysAddr) -> Result<u32> {
    if phys.get() % PAGE_SIZE as u64 != 0 {
        return Err(EINVAL);
    }

    // SAFETY: The function takes any number: it checks whether there is a page at the address.
    let order = unsafe { bindings::kho_preserved_order(phys.get()) };

    u32::try_from(order).map_err(|_| Error::from_errno(order))
}

/// Whether any page of `size` bytes of memory at `phys` is known to be poisoned: reading it may
/// bring the machine down. The previous kernel has told which ones it knew of.
///
/// C counterpart: `kho_poisoned()`.
pub fn is_poisoned(phys: PhysAddr, size: usize) -> bool {
    // SAFETY: The function takes any numbers: it checks whether there are pages.
    unsafe { bindings::kho_has_poison(phys.get(), size as u64) }
}

/// A value that the next kernel can find by a name, once it is an entry in KHO's root tree.
///
/// Dropping it takes the entry out of the tree and frees the memory.
///
/// # Invariants
///
/// If `listed` is true, `value` has been added to KHO's tree.
pub struct Subtree<T: FromBytes + IntoBytes> {
    value: Preserved<T>,
    listed: bool,
}

impl<T: FromBytes + IntoBytes> Subtree<T> {
    /// Makes one that is not listed yet.
    pub fn new(value: Preserved<T>) -> Self {
        // INVARIANT: It is not listed.
        Self {
            value,
            listed: false,
        }
    }

    /// Adds it to KHO's tree under `name`, unless it is there already.
    ///
    /// # Errors
    ///
    /// - [`EEXIST`] if there is another entry of that name.
    /// - [`ENOMEM`] if KHO's root tree is full.
    ///
    /// C counterpart: `kho_add_subtree()`.
    pub fn list(&mut self, name: &CStr) -> Result {
        if self.listed {
            return Ok(());
        }

        // SAFETY: `name` is a C string that the function copies. `value` is preserved memory, and
        // stays until `drop` takes it out of the tree.
        to_result(unsafe {
            bindings::kho_add_subtree(
                name.as_char_ptr(),
                self.value.ptr.as_ptr().cast(),
                size_of::<T>(),
            )
        })?;
        // INVARIANT: The call above added it.
        self.listed = true;
        Ok(())
    }
}

impl<T: FromBytes + IntoBytes> Deref for Subtree<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: FromBytes + IntoBytes> DerefMut for Subtree<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T: FromBytes + IntoBytes> Drop for Subtree<T> {
    fn drop(&mut self) {
        if self.listed {
            // SAFETY: By the type invariant this very address was added.
            unsafe { bindings::kho_remove_subtree(self.value.ptr.as_ptr().cast()) };
        }
    }
}

/// Where the previous kernel left the value that it added under `name`, and its size in bytes.
///
/// [`None`] if this boot is no kexec with KHO, or there is no such entry.
///
/// # Errors
///
/// [`EINVAL`] if the entry is malformed.
///
/// C counterpart: `kho_retrieve_subtree()`.
pub fn find_subtree(name: &CStr) -> Result<Option<(PhysAddr, usize)>> {
    let mut phys: bindings::phys_addr_t = 0;
    let mut size: usize = 0;

    // SAFETY: `name` is a C string, `phys` and `size` are ours to write.
    let ret = to_result(unsafe {
        bindings::kho_retrieve_subtree(name.as_char_ptr(), &mut phys, &mut size)
    });

    match ret {
        Ok(()) => Ok(Some((PhysAddr::new(phys).ok_or(EINVAL)?, size))),
        Err(e) if e == ENOENT => Ok(None),
        Err(e) => Err(e),
    }
}
