// SPDX-License-Identifier: GPL-2.0

//! Directories in sysfs, and attributes: small text files that show one thing each, or take one.
//!
//! What an attribute is, an implementation of [`Attribute`] says. It has no data of its own, so
//! everything that sysfs refers to is static. [`Attributes`] lists those of a directory, and a
//! [`Directory`] has them as long as it lives.
//!
//! C header: [`include/linux/sysfs.h`](srctree/include/linux/sysfs.h).

use crate::{
    bindings,
    error::{
        from_result,
        to_result,
        VTABLE_DEFAULT_ERROR, //
    },
    page::PAGE_SIZE,
    prelude::*,
    str::Formatter, //
};
use core::{
    fmt,
    marker::PhantomData,
    ptr::{
        null,
        NonNull, //
    }, //
};

/// A file of a [`Directory`].
///
/// Its methods may sleep, and several may run at once.
///
/// C counterpart: `struct kobj_attribute`.
///
/// # Examples
///
/// ```
/// use core::fmt;
/// use kernel::sysfs::{
///     Attribute,
///     Attributes,
///     Directory, //
/// };
///
/// struct Answer;
///
/// #[vtable]
/// impl Attribute for Answer {
///     const NAME: &'static CStr = c"answer";
///
///     fn show(to: &mut dyn fmt::Write) -> Result {
///         Ok(writeln!(to, "{}", 42)?)
///     }
/// }
///
/// static ATTRIBUTES: Attributes<1> = Attributes::new().with::<Answer>(0);
///
/// # #[cfg(CONFIG_SYSFS)] {
/// let directory = Directory::under_kernel(c"rust_doctest_sysfs")?;
/// // Now /sys/kernel/rust_doctest_sysfs/answer says 42, until `directory` is dropped.
/// directory.add(&ATTRIBUTES)?;
/// directory.notify(Answer::NAME);
/// # }
/// # Ok::<(), Error>(())
/// ```
#[vtable]
pub trait Attribute: Sized + 'static {
    /// The name of the file.
    const NAME: &'static CStr;

    /// Writes what a reader gets, at most a page. Without it the file cannot be read.
    ///
    /// # Errors
    ///
    /// Any; the reader gets it.
    fn show(_to: &mut dyn fmt::Write) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Takes what was written, mostly with a newline at its end. Without it the file cannot be
    /// written.
    ///
    /// # Errors
    ///
    /// Any; the writer gets it.
    fn store(_text: &[u8]) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// The C structure of an attribute.
#[repr(transparent)]
struct RawAttribute(bindings::kobj_attribute);

// SAFETY: It is only read.
unsafe impl Sync for RawAttribute {}

/// The C callbacks of an [`Attribute`].
struct Adapter<T: Attribute>(PhantomData<T>);

impl<T: Attribute> Adapter<T> {
    // With lockdep there are more fields.
    #[expect(clippy::needless_update)]
    const RAW: &'static RawAttribute = &RawAttribute(bindings::kobj_attribute {
        attr: bindings::attribute {
            name: crate::str::as_char_ptr_in_const_context(T::NAME),
            mode: if T::HAS_SHOW { 0o444 } else { 0 } | if T::HAS_STORE { 0o200 } else { 0 },
            ..pin_init::zeroed()
        },
        __bindgen_anon_1: bindings::kobj_attribute__bindgen_ty_1 {
            show: if T::HAS_SHOW { Some(Self::show) } else { None },
        },
        __bindgen_anon_2: bindings::kobj_attribute__bindgen_ty_2 {
            store: if T::HAS_STORE {
                Some(Self::store)
            } else {
                None
            },
        },
    });

    /// # Safety
    ///
    /// `buffer` must be valid for writing a page.
    unsafe extern "C" fn show(
        _kobj: *mut bindings::kobject,
        _attribute: *mut bindings::kobj_attribute,
        buffer: *mut c_char,
    ) -> isize {
        from_result(|| {
            // SAFETY: By the requirement of this function `buffer` is valid for writing a page, which
            // sysfs has zeroed.
            let page = unsafe { core::slice::from_raw_parts_mut(buffer, PAGE_SIZE) };
            let mut to = Formatter::new(page);

            T::show(&mut to)?;
            Ok(to.bytes_written().try_into()?)
        })
    }

    /// # Safety
    ///
    /// `text` must be valid for reading `len` bytes.
    unsafe extern "C" fn store(
        _kobj: *mut bindings::kobject,
        _attribute: *mut bindings::kobj_attribute,
        text: *const c_char,
        len: usize,
    ) -> isize {
        from_result(|| {
            // SAFETY: By the requirement of this function `text` is valid for reading `len` bytes.
            T::store(unsafe { core::slice::from_raw_parts(text, len) })?;
            Ok(len.try_into()?)
        })
    }
}

/// A list of attributes.
///
/// # Invariants
///
/// All of `attributes` up to the first null pointer are part of a static `RawAttribute`. `end` is
/// null.
#[repr(C)]
pub struct Attributes<const N: usize> {
    attributes: [*const bindings::attribute; N],
    end: *const bindings::attribute,
}

// SAFETY: It is only read, and so is what it refers to.
unsafe impl<const N: usize> Sync for Attributes<N> {}

impl<const N: usize> Attributes<N> {
    /// A list without any.
    #[expect(clippy::new_without_default)]
    pub const fn new() -> Self {
        // INVARIANT: All are null.
        Self {
            attributes: [null(); N],
            end: null(),
        }
    }

    /// Makes `T` the attribute at `index`, counted from 0 on. What comes after a place that is
    /// empty does not count.
    pub const fn with<T: Attribute>(mut self, index: usize) -> Self {
        // INVARIANT: It is part of a static.
        self.attributes[index] = &Adapter::<T>::RAW.0.attr;
        self
    }
}

/// A directory in sysfs. Dropping it removes it with its files, after the last of their methods
/// has returned.
///
/// # Invariants
///
/// `kobj` is a valid `struct kobject` that was made by `kobject_create_and_add()`, and we own a
/// reference to it.
pub struct Directory {
    kobj: NonNull<bindings::kobject>,
}

// SAFETY: References to a `struct kobject` may be put from any thread.
unsafe impl Send for Directory {}
// SAFETY: All that can be done with a shared one is to add files and to notify, and sysfs
// synchronizes that.
unsafe impl Sync for Directory {}

impl Directory {
    /// Makes the directory `/sys/kernel/NAME`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if there is one of that name, or memory is short.
    ///
    /// C counterpart: `kobject_create_and_add()`.
    pub fn under_kernel(name: &CStr) -> Result<Self> {
        // SAFETY: The parent is set early in boot and stays; `name` is a C string that is copied.
        let kobj =
            unsafe { bindings::kobject_create_and_add(name.as_char_ptr(), bindings::kernel_kobj) };

        // INVARIANT: The call made it, and the reference is ours.
        Ok(Self {
            kobj: NonNull::new(kobj).ok_or(ENOMEM)?,
        })
    }

    /// Adds files.
    ///
    /// # Errors
    ///
    /// - [`EEXIST`] if there is one of a name already.
    /// - [`ENOMEM`] if memory is short.
    ///
    /// C counterpart: `sysfs_create_group()`.
    pub fn add<const N: usize>(&self, attributes: &'static Attributes<N>) -> Result {
        let group = bindings::attribute_group {
            __bindgen_anon_2: bindings::attribute_group__bindgen_ty_2 {
                attrs_const: core::ptr::from_ref(attributes).cast(),
            },
            ..pin_init::zeroed()
        };

        // SAFETY: By the type invariants `kobj` is valid, and the list ends with a null pointer;
        // the attributes are static, and of the type that the files of such a `kobj` have. The
        // group itself is not kept.
        to_result(unsafe { bindings::sysfs_create_group(self.kobj.as_ptr(), &group) })
    }

    /// Wakes up the tasks that poll the file `name`, if there is one in this directory.
    ///
    /// May sleep.
    ///
    /// C counterpart: `sysfs_notify()`.
    pub fn notify(&self, name: &CStr) {
        // SAFETY: `kobj` is valid by the type invariant; the name is a C string.
        unsafe {
            bindings::sysfs_notify(self.kobj.as_ptr(), null(), name.as_char_ptr());
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // This removes the files even if there are other references to the kobject; their methods
        // are not called later.
        // SAFETY: By the type invariant `kobj` is valid and was added, and the reference is ours.
        unsafe {
            bindings::kobject_del(self.kobj.as_ptr());
            bindings::kobject_put(self.kobj.as_ptr());
        }
    }
}
