// SPDX-License-Identifier: GPL-2.0

//! Read-write semaphores.
//!
//! C header: [`include/linux/rwsem.h`](srctree/include/linux/rwsem.h).

use crate::{
    bindings,
    error::to_result,
    prelude::*,
    sync::LockClassKey,
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};
use core::{
    cell::UnsafeCell,
    marker::PhantomPinned,
    ops::{
        Deref,
        DerefMut, //
    }, //
};

/// Creates an initializer of a [`RwSemaphore`] with a lock class of its own.
#[macro_export]
macro_rules! new_rw_semaphore {
    ($inner:expr, $name:literal $(,)?) => {
        $crate::sync::RwSemaphore::new(
            $inner,
            $crate::optional_name!($name),
            $crate::static_lock_class!(),
        )
    };
}
pub use new_rw_semaphore;

/// Data that many tasks can read at once, or one can write. Waiting for it sleeps.
///
/// # Examples
///
/// ```
/// use kernel::{
///     new_rw_semaphore,
///     sync::RwSemaphore, //
/// };
///
/// let counted = KBox::pin_init(new_rw_semaphore!(1, "doctest::counted"), GFP_KERNEL)?;
///
/// *counted.write() += 1;
/// let (one, other) = (counted.read(), counted.read_killable()?);
/// assert_eq!((*one, *other), (2, 2));
/// # Ok::<(), Error>(())
/// ```
///
/// C counterpart: `struct rw_semaphore`.
///
/// # Invariants
///
/// `semaphore` is initialized. `data` is written only by the holder for writing, and read only by
/// holders.
#[pin_data]
pub struct RwSemaphore<T> {
    #[pin]
    semaphore: Opaque<bindings::rw_semaphore>,
    #[pin]
    _pin: PhantomPinned,
    data: UnsafeCell<T>,
}

// SAFETY: The data moves with it; a `struct rw_semaphore` belongs to no thread.
unsafe impl<T: Send> Send for RwSemaphore<T> {}
// SAFETY: The data is shared by readers, for which it must be `Sync`, and handed from one writer to
// the next, for which it must be `Send`.
unsafe impl<T: Send + Sync> Sync for RwSemaphore<T> {}

impl<T> RwSemaphore<T> {
    /// Makes one; see [`new_rw_semaphore`].
    pub fn new(
        data: T,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        // INVARIANT: The semaphore is initialized here.
        pin_init!(Self {
            // SAFETY: The slot is valid and pinned; name and key are static.
            semaphore <- unsafe {
                Opaque::ffi_init(|slot| {
                    bindings::__init_rwsem(slot, name.as_char_ptr(), key.as_ptr())
                })
            },
            _pin: PhantomPinned,
            data: UnsafeCell::new(data),
        })
    }

    /// Waits until nobody writes.
    ///
    /// C counterpart: `down_read()`.
    pub fn read(&self) -> RwSemaphoreReadGuard<'_, T> {
        // SAFETY: By the type invariant it is initialized.
        unsafe { bindings::down_read(self.semaphore.get()) };

        // INVARIANT: As just done.
        RwSemaphoreReadGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }

    /// Waits until nobody writes, or the task is killed.
    ///
    /// # Errors
    ///
    /// [`EINTR`] if the task is killed.
    ///
    /// C counterpart: `down_read_killable()`.
    pub fn read_killable(&self) -> Result<RwSemaphoreReadGuard<'_, T>> {
        // SAFETY: By the type invariant it is initialized.
        to_result(unsafe { bindings::down_read_killable(self.semaphore.get()) })?;

        // INVARIANT: As just done.
        Ok(RwSemaphoreReadGuard {
            lock: self,
            _not_send: NotThreadSafe,
        })
    }

    /// Ends reading that began by a guard which was forgotten.
    ///
    /// # Safety
    ///
    /// The caller must have forgotten a [`RwSemaphoreReadGuard`] of this lock, on this thread, for
    /// each call.
    ///
    /// C counterpart: `up_read()`.
    pub unsafe fn end_read(&self) {
        // SAFETY: By the requirement of this function it is held for reading.
        unsafe { bindings::up_read(self.semaphore.get()) };
    }

    /// Waits until nobody reads or writes.
    ///
    /// C counterpart: `down_write()`.
    pub fn write(&self) -> RwSemaphoreWriteGuard<'_, T> {
        // SAFETY: By the type invariant it is initialized.
        unsafe { bindings::down_write(self.semaphore.get()) };

        // INVARIANT: As just done.
        RwSemaphoreWriteGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }

    /// Begins to write if nobody reads or writes; [`None`] else. Does not wait.
    ///
    /// C counterpart: `down_write_trylock()`.
    pub fn try_write(&self) -> Option<RwSemaphoreWriteGuard<'_, T>> {
        // SAFETY: By the type invariant it is initialized.
        if unsafe { bindings::down_write_trylock(self.semaphore.get()) } == 0 {
            return None;
        }

        // INVARIANT: As just done.
        Some(RwSemaphoreWriteGuard {
            lock: self,
            _not_send: NotThreadSafe,
        })
    }

    /// Waits until nobody reads or writes, or the task is killed.
    ///
    /// # Errors
    ///
    /// [`EINTR`] if the task is killed.
    ///
    /// C counterpart: `down_write_killable()`.
    pub fn write_killable(&self) -> Result<RwSemaphoreWriteGuard<'_, T>> {
        // SAFETY: By the type invariant it is initialized.
        to_result(unsafe { bindings::down_write_killable(self.semaphore.get()) })?;

        // INVARIANT: As just done.
        Ok(RwSemaphoreWriteGuard {
            lock: self,
            _not_send: NotThreadSafe,
        })
    }
}

/// A [`RwSemaphore`] held for reading, until the guard is dropped.
///
/// # Invariants
///
/// The current thread holds `lock` for reading.
#[must_use]
pub struct RwSemaphoreReadGuard<'a, T> {
    lock: &'a RwSemaphore<T>,
    _not_send: NotThreadSafe,
}

// SAFETY: A shared guard gives out nothing but `&T`.
unsafe impl<T: Sync> Sync for RwSemaphoreReadGuard<'_, T> {}

impl<T> Deref for RwSemaphoreReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the type invariant nobody writes.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> Drop for RwSemaphoreReadGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it is held for reading.
        unsafe { bindings::up_read(self.lock.semaphore.get()) };
    }
}

/// A [`RwSemaphore`] held for writing, until the guard is dropped.
///
/// # Invariants
///
/// The current thread holds `lock` for writing.
#[must_use]
pub struct RwSemaphoreWriteGuard<'a, T> {
    lock: &'a RwSemaphore<T>,
    _not_send: NotThreadSafe,
}

// SAFETY: A shared guard gives out nothing but `&T`.
unsafe impl<T: Sync> Sync for RwSemaphoreWriteGuard<'_, T> {}

impl<T> Deref for RwSemaphoreWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the type invariant nobody else has access.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for RwSemaphoreWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the type invariant nobody else has access.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for RwSemaphoreWriteGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it is held for writing.
        unsafe { bindings::up_write(self.lock.semaphore.get()) };
    }
}
