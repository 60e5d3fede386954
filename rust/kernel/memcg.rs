// SPDX-License-Identifier: GPL-2.0

//! Memory control groups: who pays for what the current task allocates.
//!
//! C headers: [`include/linux/memcontrol.h`](srctree/include/linux/memcontrol.h),
//! [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h).

use crate::{
    bindings,
    types::NotThreadSafe, //
};

/// As long as this lives, what the current task allocates is charged to the root group, which has
/// no limit.
///
/// For work on behalf of the machine, which must not fail at the limit of the group of the task
/// that asks for it. These may be nested.
///
/// C counterpart: `set_active_memcg()`.
pub struct RootCharges {
    /// The group that was charged before: null for that of the task.
    outer: *mut bindings::mem_cgroup,
    _task: NotThreadSafe,
}

impl RootCharges {
    /// Begins to charge to the root group.
    pub fn begin() -> Self {
        Self {
            // SAFETY: This is about the current task.
            outer: unsafe { bindings::charge_to_root() },
            _task: NotThreadSafe,
        }
    }
}

impl Drop for RootCharges {
    fn drop(&mut self) {
        // SAFETY: As this is not `Send`, it is about the task that it was about before, whose group
        // the pointer is from.
        unsafe { bindings::charge_to(self.outer) };
    }
}
