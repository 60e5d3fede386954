// SPDX-License-Identifier: GPL-2.0

//! A mutex for a `static` that needs no initialization before its first use.
//!
//! A `static` of a module is never dropped: what its value owns when the module is unloaded is
//! leaked.

use crate::{
    bindings,
    prelude::*,
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
        },
        LockClassKey, //
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

/// Creates a [`StaticMutex`] with a lock class of its own, for the initializer of a `static`.
#[macro_export]
macro_rules! static_mutex {
    ($value:expr, $name:literal $(,)?) => {
        $crate::sync::StaticMutex::new($value, $crate::c_str!($name), $crate::static_lock_class!())
    };
}
pub use static_mutex;

/// The C mutex is not initialized.
const NEW: u32 = 0;
/// A task is initializing the C mutex.
const BEGUN: u32 = 1;
/// The C mutex is initialized.
const READY: u32 = 2;

/// Data in a `static` that one task at a time can use.
///
/// Unlike the locks of [`global_lock!`](crate::sync::global_lock), it needs no call to initialize
/// it, which would be `unsafe`: the first task that locks it does so.
///
/// # Examples
///
/// ```
/// use kernel::sync::{static_mutex, StaticMutex};
///
/// static COUNTED: StaticMutex<u32> = static_mutex!(1, "doctest::COUNTED");
///
/// *COUNTED.lock() += 1;
/// assert_eq!(*COUNTED.lock(), 2);
/// ```
///
/// C counterpart: `DEFINE_MUTEX()`.
///
/// # Invariants
///
/// `state` only grows. The task that changed it to `BEGUN` has exclusive access to `mutex`. Once it
/// is `READY`, `mutex` is initialized, and only the task that holds it accesses `value`.
pub struct StaticMutex<T> {
    state: Atomic<u32>,
    mutex: Opaque<bindings::mutex>,
    name: &'static CStr,
    class: Pin<&'static LockClassKey>,
    value: UnsafeCell<T>,
}

// SAFETY: By the type invariants one thread at a time accesses the value.
unsafe impl<T: Send> Sync for StaticMutex<T> {}

impl<T> StaticMutex<T> {
    /// Creates one for a `static`; see [`static_mutex!`].
    pub const fn new(value: T, name: &'static CStr, class: Pin<&'static LockClassKey>) -> Self {
        // INVARIANT: Nothing is initialized.
        Self {
            state: Atomic::new(NEW),
            mutex: Opaque::uninit(),
            name,
            class,
            value: UnsafeCell::new(value),
        }
    }

    /// Locks it. May sleep.
    pub fn lock(&'static self) -> StaticMutexGuard<T> {
        // Pairs with the release in `init`: once this reads `READY`, the C mutex is initialized.
        while self.state.load(Acquire) != READY {
            self.init();
        }

        // SAFETY: By the type invariants the mutex is initialized.
        let () = unsafe { MutexBackend::lock(self.mutex.get()) };
        // INVARIANT: The mutex was just locked.
        StaticMutexGuard {
            mutex: self,
            _not_send: NotThreadSafe,
        }
    }

    /// Initializes the C mutex, or gives the task that does so time to go on.
    fn init(&'static self) {
        if self.state.cmpxchg(NEW, BEGUN, Full).is_err() {
            fsleep(Delta::from_micros(10));
            return;
        }

        // SAFETY: By the type invariants we have exclusive access to the mutex. It does not move,
        // as it is in a static. The name and the lock class are static, too.
        unsafe {
            MutexBackend::init(
                self.mutex.get(),
                self.name.as_char_ptr(),
                self.class.as_ptr(),
            );
        }
        // INVARIANT: The mutex is initialized.
        self.state.store(READY, Release);
    }
}

/// A locked [`StaticMutex`]. Dropping it unlocks.
///
/// # Invariants
///
/// This task holds the mutex.
#[must_use = "the lock unlocks immediately when the guard is unused"]
pub struct StaticMutexGuard<T: 'static> {
    mutex: &'static StaticMutex<T>,
    _not_send: NotThreadSafe,
}

impl<T> Deref for StaticMutexGuard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the type invariant this task holds the mutex, and so nobody else has the
        // value.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T> DerefMut for StaticMutexGuard<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the type invariant this task holds the mutex, and so nobody else has the
        // value.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T> Drop for StaticMutexGuard<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this task holds the mutex.
        unsafe { MutexBackend::unlock(self.mutex.mutex.get(), &()) };
    }
}
