// SPDX-License-Identifier: GPL-2.0

//! Shows the types of [`abi`](crate::abi) in the kernel's messages.
//!
//! The kernel has a trait of its own for that, while `abi` knows nothing of the kernel.

use core::fmt as core_fmt;
use kernel::{
    fmt,
    prelude::Error, //
};

use crate::abi::{
    chain::ChainError,
    flb::FlbError,
    root::RootError,
    session::RecordError,
    subsystem::SubsystemError,
    Name, //
};

macro_rules! show {
    ($([$($generics:tt)*] $type:ty),* $(,)?) => {
        $(impl<$($generics)*> fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                core_fmt::Display::fmt(self, f)
            }
        })*
    };
}

show!(
    [const N: usize] Name<N>,
    [] ChainError<Error>,
    [] FlbError,
    [] RecordError,
    [] RootError,
    [] SubsystemError,
);
