// SPDX-License-Identifier: GPL-2.0

//! Gives memory of the previous kernel to the page allocator, but not before that is complete.
//!
//! Below all that is restored. Early initcalls read records of the previous kernel and have no more
//! use for them, but at that time most pages are not initialised, nor the blocks that they are in
//! (`DEFERRED_STRUCT_PAGE_INIT`): the page allocator would merge a page with such neighbours, and
//! count it for a kind of block that it is not in later. So what is released early waits.

use crate::{
    bindings,
    prelude::*,
    sync::atomic::{
        Atomic,
        Full,
        Relaxed, //
    }, //
};
use core::ptr::{
    self,
    NonNull, //
};

/// A folio that waits to be freed, as it stands at the beginning of the folio's own memory.
struct Waiting {
    folio: NonNull<bindings::folio>,
    next: *mut Waiting,
}

/// The folio that began to wait last, null, or [`COMPLETE`].
static LAST: Atomic<*mut Waiting> = Atomic::new(ptr::null_mut());

/// The page allocator is complete: no folio has to wait.
const COMPLETE: *mut Waiting = ptr::dangling_mut();

/// Drops the only reference to a folio.
///
/// # Safety
///
/// The folio must be in the direct map. The reference is transferred, and the memory is not used
/// any more.
pub(super) unsafe fn release(folio: NonNull<bindings::folio>) {
    let mut last = LAST.load(Relaxed);

    while last != COMPLETE {
        let waiting = Waiting { folio, next: last };
        // SAFETY: By the requirement of this function the memory of the folio is ours, and mapped.
        // It is at least a page, and aligned to that.
        let new = unsafe {
            let new: *mut Waiting = bindings::folio_address(folio.as_ptr()).cast();
            new.write(waiting);
            new
        };

        match LAST.cmpxchg(last, new, Full) {
            Ok(_) => return,
            Err(other) => last = other,
        }
    }
    // SAFETY: By the requirement of this function the reference is ours, and is dropped once.
    unsafe { bindings::folio_put(folio.as_ptr()) };
}

/// Frees all folios that have waited.
///
/// An initcall of the first level: before these, all pages are initialised.
#[no_mangle]
extern "C" fn rust_kho_allocator_complete() -> c_int {
    let mut next = LAST.xchg(COMPLETE, Full);

    while next != COMPLETE && !next.is_null() {
        // SAFETY: `release` has written there, in memory that has been nobody else's since; with
        // the exchange above it, and the reference to the folio, have become ours.
        unsafe {
            let waiting = next.read();
            next = waiting.next;
            bindings::folio_put(waiting.folio.as_ptr());
        }
    }
    0
}

crate::pure_initcall!(rust_kho_allocator_complete);
