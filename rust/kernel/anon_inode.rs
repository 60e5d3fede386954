// SPDX-License-Identifier: GPL-2.0

//! Files without a place in any file system, for interfaces that hand out file descriptors.
//!
//! All of them share one table of operations, and each says itself of what type it is. So a file
//! that comes from somewhere can be asked for its data, safely: see [`data_of`].
//!
//! C header: [`include/linux/anon_inodes.h`](srctree/include/linux/anon_inodes.h).

use crate::{
    bindings,
    error::{
        from_err_ptr,
        VTABLE_DEFAULT_ERROR, //
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

/// The operations on an anonymous file, implemented by what the file stands for.
///
/// All may sleep, and several may run at once.
///
/// C counterpart: `struct file_operations`.
#[vtable]
pub trait AnonFile: Sized + 'static {
    /// How the file owns its data.
    type Ptr: ForeignOwnable + Send + Sync;

    /// Called when the last reference to the file goes.
    fn release(data: Self::Ptr) {
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
/// `name` is for people: it is what `readlink /proc/PID/fd/N` shows after `anon_inode:`. May
/// sleep. The module that implements `T` stays while the file is open.
///
/// # Errors
///
/// - [`ENFILE`] if the system has too many open files.
/// - [`ENODEV`] if the module that implements `T` is going away.
/// - [`ENOMEM`] if memory is short.
///
/// On error `data` is dropped, not released.
///
/// C counterpart: `anon_inode_getfile()`.
pub fn new_file<T: AnonFile>(name: &CStr, data: T::Ptr) -> Result<ARef<File>> {
    const FLAGS: c_int = bindings::O_RDWR as c_int;

    let open = KBox::new(Open::new::<T>(data)?, GFP_KERNEL_ACCOUNT)?;
    let private = KBox::into_raw(open);

    // SAFETY: `name` is a C string that is copied; the operations are static, and made for this
    // type of private data.
    let file = from_err_ptr(unsafe {
        bindings::anon_inode_getfile(name.as_char_ptr(), &OPERATIONS.0, private.cast(), FLAGS)
    });

    match file.map(NonNull::new) {
        // SAFETY: The reference that the call returned is ours, and no file descriptor refers to
        // the file yet, so no `fdget_pos()` region can be active on it.
        Ok(Some(file)) => Ok(unsafe { ARef::from_raw(file.cast()) }),
        error => {
            // SAFETY: No file was made, so the box is still ours.
            drop(unsafe { KBox::from_raw(private) });
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
    if !core::ptr::eq(operations, &OPERATIONS.0) {
        return None;
    }

    // SAFETY: A file with these operations was made by `new_file`, and keeps its data until its
    // last reference goes.
    let open = unsafe { &*private.cast::<Open>() };
    if open.type_id != TypeId::of::<T>() {
        return None;
    }
    // SAFETY: By the type invariant of `Open` it has the data of a `T`.
    Some(unsafe { T::Ptr::borrow(open.data) })
}

/// What stands behind an open file.
///
/// # Invariants
///
/// `data` came from `into_foreign()` of the `Ptr` of the [`AnonFile`] whose `type_id` and
/// `methods` these are. We own it, and a reference to `module`, which may be null.
struct Open {
    type_id: TypeId,
    methods: &'static Methods,
    data: *mut c_void,
    module: *mut bindings::module,
}

impl Open {
    fn new<T: AnonFile>(data: T::Ptr) -> Result<Self> {
        let module = this_module::<T::OwnerModule>().as_ptr();

        // SAFETY: The module is null or runs this very code.
        if !unsafe { bindings::try_module_get(module) } {
            return Err(ENODEV);
        }
        // INVARIANT: All are of `T`, and the call took a reference to the module.
        Ok(Self {
            type_id: TypeId::of::<T>(),
            methods: &Vtable::<T>::METHODS,
            data: data.into_foreign(),
            module,
        })
    }

    /// Has the data released rather than dropped.
    fn release(self: KBox<Self>) {
        // The reference to the module ends when no code of it runs any more.
        let open = core::mem::ManuallyDrop::new(KBox::into_inner(self));

        // SAFETY: By the type invariants; the data is not used again.
        unsafe { (open.methods.release)(open.data) };
        // SAFETY: By the type invariants.
        unsafe { bindings::module_put(open.module) };
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // SAFETY: By the type invariants; the data is not used again.
        unsafe { (self.methods.drop)(self.data) };
        // SAFETY: By the type invariants.
        unsafe { bindings::module_put(self.module) };
    }
}

/// The methods of an [`AnonFile`]. Each takes the data as [`Open`] has it, and is unsafe for that.
struct Methods {
    drop: unsafe fn(*mut c_void),
    release: unsafe fn(*mut c_void),
    read: Option<Read>,
    write: Option<Write>,
    ioctl: Option<Ioctl>,
}

type Read = unsafe fn(*mut c_void, &mut i64, &mut IovIterDest<'_>) -> Result<usize>;
type Write = unsafe fn(*mut c_void, &mut i64, &mut IovIterSource<'_>) -> Result<usize>;
type Ioctl = unsafe fn(*mut c_void, u32, usize) -> Result<isize>;

struct Vtable<T: AnonFile>(PhantomData<T>);

impl<T: AnonFile> Vtable<T> {
    const METHODS: Methods = Methods {
        drop: Self::drop,
        release: Self::release,
        read: if T::HAS_READ { Some(Self::read) } else { None },
        write: if T::HAS_WRITE {
            Some(Self::write)
        } else {
            None
        },
        ioctl: if T::HAS_IOCTL {
            Some(Self::ioctl)
        } else {
            None
        },
    };

    /// # Safety
    ///
    /// `data` must be of a `T`, and is not used again.
    unsafe fn drop(data: *mut c_void) {
        // SAFETY: By the requirement of this function.
        drop(unsafe { T::Ptr::from_foreign(data) });
    }

    /// # Safety
    ///
    /// `data` must be of a `T`, and is not used again.
    unsafe fn release(data: *mut c_void) {
        // SAFETY: By the requirement of this function.
        T::release(unsafe { T::Ptr::from_foreign(data) });
    }

    /// # Safety
    ///
    /// `data` must be of a `T`.
    unsafe fn read(
        data: *mut c_void,
        position: &mut i64,
        to: &mut IovIterDest<'_>,
    ) -> Result<usize> {
        // SAFETY: By the requirement of this function.
        T::read(unsafe { T::Ptr::borrow(data) }, position, to)
    }

    /// # Safety
    ///
    /// `data` must be of a `T`.
    unsafe fn write(
        data: *mut c_void,
        position: &mut i64,
        from: &mut IovIterSource<'_>,
    ) -> Result<usize> {
        // SAFETY: By the requirement of this function.
        T::write(unsafe { T::Ptr::borrow(data) }, position, from)
    }

    /// # Safety
    ///
    /// `data` must be of a `T`.
    unsafe fn ioctl(data: *mut c_void, cmd: u32, arg: usize) -> Result<isize> {
        // SAFETY: By the requirement of this function.
        T::ioctl(unsafe { T::Ptr::borrow(data) }, cmd, arg)
    }
}

/// The operations of all anonymous files: a place in memory by which they are known.
static OPERATIONS: Operations = Operations(bindings::file_operations {
    release: Some(release),
    read_iter: Some(read_iter),
    write_iter: Some(write_iter),
    unlocked_ioctl: Some(ioctl),
    #[cfg(CONFIG_COMPAT)]
    compat_ioctl: bindings::compat_ptr_ioctl,
    ..pin_init::zeroed()
});

struct Operations(bindings::file_operations);

// SAFETY: The table is never written to.
unsafe impl Sync for Operations {}

/// # Safety
///
/// `file` must be a file made by [`new_file`] whose last reference is gone.
unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // SAFETY: By the requirement of this function; `new_file` put a box there.
    unsafe { KBox::<Open>::from_raw((*file).private_data.cast()) }.release();
    0
}

/// # Safety
///
/// `file` must be an open file made by [`new_file`].
unsafe fn open_of<'a>(file: *mut bindings::file) -> &'a Open {
    // SAFETY: By the requirement of this function; it goes away in `release` only.
    unsafe { &*(*file).private_data.cast() }
}

/// # Safety
///
/// `kiocb` must be for an open file made by [`new_file`], and `iter` valid to copy to.
unsafe extern "C" fn read_iter(
    kiocb: *mut bindings::kiocb,
    iter: *mut bindings::iov_iter,
) -> isize {
    // SAFETY: By the requirement of this function.
    let open = unsafe { open_of((*kiocb).ki_filp) };
    // SAFETY: By the requirement of this function, the two are ours for the call.
    let (position, to) = unsafe { (&mut (*kiocb).ki_pos, IovIterDest::from_raw(iter)) };

    let result = match open.methods.read {
        // SAFETY: The data belongs to the methods.
        Some(read) => unsafe { read(open.data, position, to) },
        None => Err(EINVAL),
    };
    length(result)
}

/// # Safety
///
/// `kiocb` must be for an open file made by [`new_file`], and `iter` valid to copy from.
unsafe extern "C" fn write_iter(
    kiocb: *mut bindings::kiocb,
    iter: *mut bindings::iov_iter,
) -> isize {
    // SAFETY: By the requirement of this function.
    let open = unsafe { open_of((*kiocb).ki_filp) };
    // SAFETY: By the requirement of this function, the two are ours for the call.
    let (position, from) = unsafe { (&mut (*kiocb).ki_pos, IovIterSource::from_raw(iter)) };

    let result = match open.methods.write {
        // SAFETY: The data belongs to the methods.
        Some(write) => unsafe { write(open.data, position, from) },
        None => Err(EINVAL),
    };
    length(result)
}

fn length(result: Result<usize>) -> isize {
    match result.and_then(|length| Ok(isize::try_from(length)?)) {
        Ok(length) => length,
        // Lossless: no kernel has narrower sizes.
        Err(e) => e.to_errno() as isize,
    }
}

/// # Safety
///
/// `file` must be an open file made by [`new_file`].
unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
    // SAFETY: By the requirement of this function.
    let open = unsafe { open_of(file) };

    let result = match open.methods.ioctl {
        // SAFETY: The data belongs to the methods.
        Some(ioctl) => unsafe { ioctl(open.data, cmd, arg) },
        None => Err(ENOTTY),
    };
    match result {
        Ok(ret) => ret as c_long,
        Err(e) => e.to_errno() as c_long,
    }
}
