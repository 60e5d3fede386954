// SPDX-License-Identifier: GPL-2.0

//! References to the modules of drivers.

use kernel::bindings;

/// A reference to the module that owns some callbacks, which keeps them in memory.
///
/// # Invariants
///
/// `module` is null, for built-in code, or we own a reference to it.
pub(super) struct ModuleRef {
    module: *mut bindings::module,
}

impl ModuleRef {
    /// [`None`] if the module is about to go.
    ///
    /// # Safety
    ///
    /// `module` must be null, or a module that has not been freed.
    pub(super) unsafe fn get(module: *mut bindings::module) -> Option<Self> {
        // SAFETY: By the requirement of this function `module` is null or a module that has not
        // been freed.
        if !unsafe { bindings::try_module_get(module) } {
            return None;
        }

        // INVARIANT: The call took the reference.
        Some(Self { module })
    }
}

impl Clone for ModuleRef {
    fn clone(&self) -> Self {
        // SAFETY: By the type invariant the module is null or cannot go, as we own a reference.
        unsafe { bindings::__module_get(self.module) };

        // INVARIANT: The call took a reference.
        Self {
            module: self.module,
        }
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant we own a reference.
        unsafe { bindings::module_put(self.module) };
    }
}
