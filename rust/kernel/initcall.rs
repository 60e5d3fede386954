// SPDX-License-Identifier: GPL-2.0

//! Hooks into the boot of the kernel, for built-in code that cannot wait for its module
//! initialization.
//!
//! C header: [`include/linux/init.h`](srctree/include/linux/init.h).

use crate::{
    ffi::c_char,
    prelude::*, //
};

/// Lays `function` (an `extern "C" fn() -> c_int` without name mangling) down as an early
/// initcall: it runs once, in process context, before the other CPUs and all other initcalls. Most
/// pages may not be initialised yet.
///
/// C counterpart: `early_initcall()`.
#[macro_export]
macro_rules! early_initcall {
    ($function:ident) => {
        $crate::__initcall!(".initcallearly.init", $function);
    };
}

/// Lays `function` (an `extern "C" fn() -> c_int` without name mangling) down as an initcall of the
/// first level: it runs once, in process context, before those of drivers and file systems, with
/// all CPUs and all pages there.
///
/// C counterpart: `pure_initcall()`.
#[macro_export]
macro_rules! pure_initcall {
    ($function:ident) => {
        $crate::__initcall!(".initcall0.init", $function);
    };
}

/// As [`pure_initcall!`], for a safe function without arguments and result. The symbol must be one of
/// its own in the whole kernel.
#[macro_export]
macro_rules! pure_initcall_fn {
    ($symbol:ident, $function:path) => {
        #[no_mangle]
        extern "C" fn $symbol() -> $crate::ffi::c_int {
            $function();
            0
        }
        $crate::pure_initcall!($symbol);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __initcall {
    ($section:literal, $function:ident) => {
        #[cfg(CONFIG_HAVE_ARCH_PREL32_RELOCATIONS)]
        ::core::arch::global_asm!(concat!(
            ".section \"",
            $section,
            "\", \"a\"\n",
            ".balign 4\n",
            ".long ",
            stringify!($function),
            " - .\n",
            ".previous\n",
        ));

        #[cfg(not(CONFIG_HAVE_ARCH_PREL32_RELOCATIONS))]
        const _: () = {
            #[link_section = $section]
            #[used(compiler)]
            static INITCALL: extern "C" fn() -> $crate::ffi::c_int = $function;
        };
    };
}

/// An entry of the table of kernel command line parameters: `struct obs_kernel_param`.
#[doc(hidden)]
#[repr(C)]
pub struct KernelParam {
    name: *const c_char,
    setup: unsafe extern "C" fn(*mut c_char) -> c_int,
    early: c_int,
}

// SAFETY: The entry is never written, and the name that it points to is a static string.
unsafe impl Sync for KernelParam {}

impl KernelParam {
    /// An entry for the early parameter `name`.
    pub const fn early(
        name: &'static CStr,
        setup: unsafe extern "C" fn(*mut c_char) -> c_int,
    ) -> Self {
        Self {
            name: crate::str::as_char_ptr_in_const_context(name),
            setup,
            early: 1,
        }
    }
}

/// Has `function` (an `unsafe extern "C" fn(*mut c_char) -> c_int`) called with the value of the
/// kernel command line parameter `name`, a C string or null, very early in boot: there is no
/// memory allocation yet.
///
/// C counterpart: `early_param()`.
#[macro_export]
macro_rules! early_param {
    ($name:literal, $function:ident) => {
        const _: () = {
            #[link_section = ".init.setup"]
            #[used(compiler)]
            static PARAM: $crate::initcall::KernelParam =
                $crate::initcall::KernelParam::early($name, $function);
        };
    };
}
