// SPDX-License-Identifier: GPL-2.0

//! The tracepoints of `include/trace/events/liveupdate.h`.

use kernel::prelude::*;

/// A tracepoint.
pub(crate) trait Tracepoint {
    /// Whether it is on.
    fn is_on() -> bool;

    /// Emits an event.
    fn emit(session: &CStr, token: u64, handler: &CStr, nanos: u64, result: c_int);
}

macro_rules! tracepoints {
    ($($type:ident => $name:ident),* $(,)?) => {
        kernel::declare_trace! {
            $(
                /// # Safety
                ///
                /// Both strings must be valid.
                unsafe fn $name(
                    session: *const c_char,
                    token: u64,
                    handler: *const c_char,
                    nanos: u64,
                    result: c_int,
                );
            )*
        }

        $(
            pub(crate) struct $type;

            impl Tracepoint for $type {
                #[inline(always)]
                fn is_on() -> bool {
                    #[cfg(CONFIG_TRACEPOINTS)]
                    kernel::macros::paste! {
                        // SAFETY: It is always possible to ask for the key of a tracepoint.
                        return unsafe {
                            kernel::jump_label::static_branch_unlikely!(
                                kernel::bindings::[< __tracepoint_ $name >],
                                kernel::bindings::tracepoint,
                                key
                            )
                        };
                    }
                    #[cfg(not(CONFIG_TRACEPOINTS))]
                    false
                }

                fn emit(session: &CStr, token: u64, handler: &CStr, nanos: u64, result: c_int) {
                    // SAFETY: The strings are valid, and copied.
                    unsafe {
                        $name(session.as_char_ptr(), token, handler.as_char_ptr(), nanos, result)
                    }
                }
            }
        )*
    };
}

tracepoints! {
    Create => liveupdate_create,
    Preserve => liveupdate_preserve,
    Unpreserve => liveupdate_unpreserve,
    Freeze => liveupdate_freeze,
    Serialize => liveupdate_serialize,
    Validate => liveupdate_validate,
    Quarantine => liveupdate_quarantine,
    Retrieve => liveupdate_retrieve,
    Finish => liveupdate_finish,
}
