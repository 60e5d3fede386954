// SPDX-License-Identifier: GPL-2.0

//! Files without a place in any file system, for interfaces that hand out file descriptors.
//!
//! C header: [`include/linux/anon_inodes.h`](srctree/include/linux/anon_inodes.h).

use crate::{
    bindings,
    error::{
        from_err_ptr,
        VTABLE_DEFAULT_ERROR, //
    },
    fs::File,
    module::this_module,
    prelude::*,
    sync::aref::ARef,
    types::ForeignOwnable, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// The operations on an anonymous file, implemented by what the file stands for.
///
/// C counterpart: `struct file_operations`.
#[vtable]
pub trait AnonFile: Sized {
    /// How the file owns its data.
    type Ptr: ForeignOwnable + Send + Sync;

    /// Called when the last reference to the file goes. May sleep.
    fn release(data: Self::Ptr) {
        drop(data);
    }

    /// Handles an ioctl. May sleep; several may run at once.
    fn ioctl(
        _data: <Self::Ptr as ForeignOwnable>::Borrowed<'_>,
        _cmd: u32,
        _arg: usize,
    ) -> Result<isize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// Makes an anonymous file, open for reading and writing, that owns `data`.
///
/// `name` is for people: it is what `readlink /proc/PID/fd/N` shows after `anon_inode:`.
///
/// # Errors
///
/// - [`ENFILE`] if the system has too many open files.
/// - [`ENOMEM`] if memory is short.
///
/// On error `data` is dropped, not released.
///
/// C counterpart: `anon_inode_getfile()`.
pub fn new_file<T: AnonFile + 'static>(name: &CStr, data: T::Ptr) -> Result<ARef<File>> {
    let data = data.into_foreign();
    const FLAGS: c_int = bindings::O_RDWR as c_int;

    // SAFETY: `name` is a C string that is copied; the operations are static, pinned in memory by
    // the module reference that an open file takes, and made for this type of data.
    let file = from_err_ptr(unsafe {
        bindings::anon_inode_getfile(name.as_char_ptr(), &Vtable::<T>::FOPS, data, FLAGS)
    });

    match file.map(NonNull::new) {
        // SAFETY: The reference that the call returned is ours, and no file descriptor refers to
        // the file yet, so no `fdget_pos()` region can be active on it.
        Ok(Some(file)) => Ok(unsafe { ARef::from_raw(file.cast()) }),
        error => {
            // SAFETY: No file was made, so the data is still ours, as `into_foreign` left it.
            drop(unsafe { T::Ptr::from_foreign(data) });
            Err(error.err().unwrap_or(ENOMEM))
        }
    }
}

/// The C operations of an [`AnonFile`].
struct Vtable<T: AnonFile>(PhantomData<T>);

impl<T: AnonFile + 'static> Vtable<T> {
    const FOPS: bindings::file_operations = bindings::file_operations {
        owner: this_module::<T::OwnerModule>().as_ptr(),
        release: Some(Self::release),
        unlocked_ioctl: if T::HAS_IOCTL {
            Some(Self::ioctl)
        } else {
            None
        },
        #[cfg(CONFIG_COMPAT)]
        compat_ioctl: if T::HAS_IOCTL {
            bindings::compat_ptr_ioctl
        } else {
            None
        },
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `file` must be a file made by [`new_file`] for `T` whose last reference is gone.
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: The file is valid during its release, and its data is as `new_file` set it.
        let data = unsafe { T::Ptr::from_foreign((*file).private_data) };

        T::release(data);
        0
    }

    /// # Safety
    ///
    /// `file` must be an open file made by [`new_file`] for `T`.
    unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
        // SAFETY: The file is open during an ioctl, and its data is as `new_file` set it: it
        // goes away in `release` only.
        let data = unsafe { T::Ptr::borrow((*file).private_data) };

        match T::ioctl(data, cmd, arg) {
            Ok(ret) => ret as c_long,
            Err(e) => e.to_errno() as c_long,
        }
    }
}
