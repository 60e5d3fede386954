// SPDX-License-Identifier: GPL-2.0

//! A mutex for a `static` that is ready without anybody's doing.
//!
//! A `static` of a module is never dropped: what its value owns when the module goes is lost.

use crate::{
    bindings,
    prelude::*,
    static_lock_class,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        lock::{
            mutex::MutexBackend,
            Backend, //
        }, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};
use core::{
    cell::UnsafeCell,
    ops::{
        Deref,
        DerefMut, //
    }, //
};

/// Nobody has locked it yet.
const NEW: u32 = 0;
/// Somebody is making the C mutex.
const BEGUN: u32 = 1;
/// The C mutex is there.
const READY: u32 = 2;

/// Data in a `static` that one at a time can use.
///
/// All of them are of one lock class, so no two may be locked at once. Unlike those of
/// [`global_lock!`](crate::sync::global_lock), it needs no `unsafe` in a module: the first who locks it
/// makes it.
///
/// # Examples
///
/// ```
/// use kernel::static_mutex::StaticMutex;
///
/// static COUNTED: StaticMutex<u32> = StaticMutex::new(1);
///
/// *COUNTED.lock() += 1;
/// assert_eq!(*COUNTED.lock(), 2);
/// ```
///
/// C counterpart: `DEFINE_MUTEX()`.
///
/// # Invariants
///
/// `state` only grows. Who made it `BEGUN` has `mutex` alone; once it is `READY`, `mutex` is
/// initialized, and `value` is only touched by who has locked it.
pub struct StaticMutex<T> {
    state: Atomic<u32>,
    mutex: Opaque<bindings::mutex>,
    value: UnsafeCell<T>,
}

// SAFETY: By the type invariants one thread at a time uses the value.
unsafe impl<T: Send> Sync for StaticMutex<T> {}

impl<T> StaticMutex<T> {
    /// Makes one for a `static`.
    pub const fn new(value: T) -> Self {
        // INVARIANT: Nothing is initialized.
        Self {
            state: Atomic::new(NEW),
            mutex: Opaque::uninit(),
            value: UnsafeCell::new(value),
        }
    }

    /// Locks it. May sleep.
    pub fn lock(&'static self) -> StaticMutexGuard<T> {
        while self.state.load(Acquire) != READY {
            self.make();
        }

        // SAFETY: By the type invariants the mutex is initialized.
        let () = unsafe { MutexBackend::lock(self.mutex.get()) };
        // INVARIANT: It is locked.
        StaticMutexGuard {
            mutex: self,
            _not_send: NotThreadSafe,
        }
    }

    /// Makes the C mutex, or waits a moment for who does.
    fn make(&'static self) {
        if self.state.cmpxchg(NEW, BEGUN, Full).is_err() {
            fsleep(Delta::from_micros(10));
            return;
        }

        // SAFETY: By the type invariants the mutex is ours alone, and it stays where it is, as it is
        // in a static. The name and the class are there for ever.
        unsafe {
            MutexBackend::init(
                self.mutex.get(),
                c"StaticMutex".as_char_ptr(),
                static_lock_class!().as_ptr(),
            );
        }
        // INVARIANT: It is initialized.
        self.state.store(READY, Release);
    }
}

/// A locked [`StaticMutex`]. Dropping it unlocks.
///
/// # Invariants
///
/// The mutex is locked by this thread.
#[must_use = "the lock unlocks immediately when the guard is unused"]
pub struct StaticMutexGuard<T: 'static> {
    mutex: &'static StaticMutex<T>,
    _not_send: NotThreadSafe,
}

impl<T> Deref for StaticMutexGuard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the type invariant the value is ours.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T> DerefMut for StaticMutexGuard<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the type invariant the value is ours.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T> Drop for StaticMutexGuard<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it is locked by this thread.
        unsafe { MutexBackend::unlock(self.mutex.mutex.get(), &()) };
    }
}
