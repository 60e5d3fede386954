// SPDX-License-Identifier: GPL-2.0

//! Files without a place in any file system, for interfaces that hand out file descriptors.
//!
//! Their tables of operations say of what type they are. So a file that comes from somewhere can be
//! asked for its data, safely: see [`data_of`].
//!
//! C header: [`include/linux/anon_inodes.h`](srctree/include/linux/anon_inodes.h).

use crate::{
    bindings,
    error::{
        from_err_ptr,
        from_result,
        VTABLE_DEFAULT_ERROR, //
    },
    fmt::{
        self,
        Write, //
    },
    fs::File,
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    module::this_module,
    prelude::*,
    sync::aref::ARef,
    types::ForeignOwnable, //
};
use core::{
    any::TypeId,
    marker::PhantomData,
    ptr::NonNull, //
};

/// How the last reference to a file was dropped.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum LastPut {
    /// By a task of its own accord: it closed the descriptor, or ended by itself.
    Closed,
    /// By the end of a task that a signal killed, or by the kernel long after that, as for a
    /// descriptor in a message that nobody can receive any more.
    Killed(Holder),
}

/// The task that dropped the last reference to a file.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pid: i32,
    comm: [u8; bindings::TASK_COMM_LEN as usize],
}

impl LastPut {
    /// How the current task drops the reference.
    fn by_current() -> Self {
        // SAFETY: The current task is valid. Only the task itself changes its flags and its exit
        // code.
        let (task, flags, exit_code) = unsafe {
            let task = bindings::get_current();
            (task, (*task).flags, (*task).exit_code)
        };

        // The lower seven bits of an exit code are the signal that killed the task.
        let killed = flags & bindings::PF_EXITING != 0 && exit_code & 0x7f != 0;
        if !killed && flags & bindings::PF_KTHREAD == 0 {
            return Self::Closed;
        }

        // SAFETY: The current task is valid. Its number does not change; its name may, so each byte
        // is read as by `READ_ONCE()`.
        unsafe {
            Self::Killed(Holder {
                pid: (*task).pid,
                comm: core::array::from_fn(|at| {
                    (&raw const (*task).comm)
                        .cast::<u8>()
                        .add(at)
                        .read_volatile()
                }),
            })
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.comm.iter().take_while(|byte| **byte != 0) {
            let printable = byte.is_ascii_graphic() || *byte == b' ';
            f.write_char(if printable { char::from(*byte) } else { '?' })?;
        }
        write!(f, "[{}]", self.pid)
    }
}

/// The operations on an anonymous file, implemented by what the file stands for.
///
/// All may sleep, and several may run at once.
///
/// C counterpart: `struct file_operations`.
#[vtable]
pub trait AnonFile: Sized + 'static {
    /// How the file owns its data.
    type Ptr: ForeignOwnable + Send + Sync;

    /// Called when the last reference to the file has been dropped.
    fn release(data: Self::Ptr, _last: LastPut) {
        drop(data);
    }

    /// Reads from `position` on, and moves it. Without it reading fails with [`EINVAL`].
    fn read(
        _data: <Self::Ptr as ForeignOwnable>::Borrowed<'_>,
        _position: &mut i64,
        _to: &mut IovIterDest<'_>,
    ) -> Result<usize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Writes at `position`, and moves it. Without it writing fails with [`EINVAL`].
    fn write(
        _data: <Self::Ptr as ForeignOwnable>::Borrowed<'_>,
        _position: &mut i64,
        _from: &mut IovIterSource<'_>,
    ) -> Result<usize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Handles an ioctl. Without it all fail with [`ENOTTY`].
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
/// `readlink /proc/PID/fd/N` shows `name` after `anon_inode:`. May sleep. The module that
/// implements `T` stays while the file is open. `pread(2)` and `pwrite(2)` work where `read(2)` and
/// `write(2)` do.
///
/// # Errors
///
/// - [`ENFILE`] if the system has too many open files.
/// - [`ENOENT`] if the module that implements `T` is going away.
/// - [`ENOMEM`] if memory is short.
///
/// On error `data` is dropped, not released.
///
/// C counterpart: `anon_inode_getfile_fmode()`.
pub fn new_file<T: AnonFile>(name: &CStr, data: T::Ptr) -> Result<ARef<File>> {
    const FLAGS: c_int = bindings::O_RDWR as c_int;

    let mut mode = 0;
    if T::HAS_READ {
        mode |= bindings::FMODE_PREAD;
    }
    if T::HAS_WRITE {
        mode |= bindings::FMODE_PWRITE;
    }
    let operations = core::ptr::from_ref(Table::<T>::TABLE).cast();
    let private = data.into_foreign();

    // SAFETY: `name` is a C string that is copied; the operations are static, and made for this
    // type of private data.
    let file = from_err_ptr(unsafe {
        bindings::anon_inode_getfile_fmode(name.as_char_ptr(), operations, private, FLAGS, mode)
    });

    match file.map(NonNull::new) {
        // SAFETY: The reference that the call returned is ours, and no file descriptor refers to
        // the file yet, so no `fdget_pos()` region can be active on it.
        Ok(Some(file)) => Ok(unsafe { ARef::from_raw(file.cast()) }),
        error => {
            // SAFETY: No file was made, so the data is still ours.
            drop(unsafe { T::Ptr::from_foreign(private) });
            Err(error.err().unwrap_or(ENOMEM))
        }
    }
}

/// The data of a file made by [`new_file`] for `T`; [`None`] if it is another file.
pub fn data_of<T: AnonFile>(file: &File) -> Option<<T::Ptr as ForeignOwnable>::Borrowed<'_>> {
    // SAFETY: The file is valid, and neither of its fields changes while there are references.
    let (operations, private) = unsafe {
        let file = file.as_ptr();
        ((*file).f_op, (*file).private_data)
    };
    // SAFETY: A file that is open has operations.
    let theirs = unsafe { (*operations).release }?;
    if !core::ptr::fn_addr_eq(theirs, release as Release) {
        return None;
    }

    // SAFETY: This function is only in operations that begin an `Identity`. Should another one have
    // been merged with it, then since it does the same, and takes its operations for one, too.
    let identity = unsafe { &*operations.cast::<Identity>() };
    if (identity.type_id)() != TypeId::of::<T>() {
        return None;
    }
    // SAFETY: The operations are those of a `T`, so the file was made by `new_file`, and keeps its
    // data until its last reference goes.
    Some(unsafe { T::Ptr::borrow(private) })
}

/// Operations, and whose they are.
#[repr(C)]
struct Identity {
    operations: bindings::file_operations,
    type_id: fn() -> TypeId,
    release: unsafe fn(*mut c_void),
}

/// The operations on the files of a `T`.
struct Table<T: AnonFile>(PhantomData<T>);

impl<T: AnonFile> Table<T> {
    const TABLE: &'static Identity = &Identity {
        operations: bindings::file_operations {
            owner: this_module::<T::OwnerModule>().as_ptr(),
            release: Some(release),
            read_iter: if T::HAS_READ {
                Some(Self::read_iter)
            } else {
                None
            },
            write_iter: if T::HAS_WRITE {
                Some(Self::write_iter)
            } else {
                None
            },
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
        },
        type_id: TypeId::of::<T>,
        release: Self::release,
    };

    /// # Safety
    ///
    /// `data` must be that of a file of a `T`, and is not used again.
    unsafe fn release(data: *mut c_void) {
        // SAFETY: By the requirement of this function `data` is that of a file of a `T`, made by
        // `into_foreign` in [`new_file`], and is used here for the last time.
        T::release(unsafe { T::Ptr::from_foreign(data) }, LastPut::by_current());
    }

    /// The data of a file.
    ///
    /// # Safety
    ///
    /// `file` must be an open file of a `T`, at least for `'a`.
    unsafe fn data<'a>(file: *mut bindings::file) -> <T::Ptr as ForeignOwnable>::Borrowed<'a> {
        // SAFETY: By the requirement of this function `file` is an open file of a `T` for `'a`, and its
        // data goes away in `release` only.
        unsafe { T::Ptr::borrow((*file).private_data) }
    }

    /// # Safety
    ///
    /// `kiocb` must be for an open file of a `T`, and `iter` valid to copy to.
    unsafe extern "C" fn read_iter(
        kiocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: By the requirement of this function, the two are ours for the call.
        let (data, position, to) = unsafe {
            let data = Self::data((*kiocb).ki_filp);
            (data, &mut (*kiocb).ki_pos, IovIterDest::from_raw(iter))
        };

        from_result(|| Ok(T::read(data, position, to)?.try_into()?))
    }

    /// # Safety
    ///
    /// `kiocb` must be for an open file of a `T`, and `iter` valid to copy from.
    unsafe extern "C" fn write_iter(
        kiocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: By the requirement of this function, the two are ours for the call.
        let (data, position, from) = unsafe {
            let data = Self::data((*kiocb).ki_filp);
            (data, &mut (*kiocb).ki_pos, IovIterSource::from_raw(iter))
        };

        from_result(|| Ok(T::write(data, position, from)?.try_into()?))
    }

    /// # Safety
    ///
    /// `file` must be an open file of a `T`.
    unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
        // SAFETY: By the requirement of this function `file` is an open file of a `T`.
        let data = unsafe { Self::data(file) };

        // No kernel has sizes that are not as wide as a `long`.
        match T::ioctl(data, cmd, arg) {
            Ok(ret) => ret as c_long,
            Err(e) => e.to_errno() as c_long,
        }
    }
}

type Release = unsafe extern "C" fn(*mut bindings::inode, *mut bindings::file) -> c_int;

/// One for all types: by it a file is known to be one of these.
///
/// # Safety
///
/// `file` must be a file made by [`new_file`] whose last reference was dropped.
unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // SAFETY: By the requirement of this function its operations begin an `Identity`, which is
    // static, for the type of its private data.
    unsafe {
        let identity = &*(*file).f_op.cast::<Identity>();
        (identity.release)((*file).private_data);
    }
    0
}
