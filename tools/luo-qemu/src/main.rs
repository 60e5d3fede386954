// SPDX-License-Identifier: GPL-2.0

//! Runs an unmodified QEMU as a client of the live update agent, so that its guest lives through an
//! update of the host's kernel.
//!
//! The guest's RAM is a memfd that luo-qemu makes, and that QEMU maps shared. It is preserved while the
//! guest runs. When an update begins, the guest is stopped, QEMU writes the state of the devices, and
//! nothing else, into a second memfd, and that is preserved, too. In the next kernel luo-qemu retrieves both,
//! starts QEMU with the same command line and the same RAM, has it load the state, and the guest goes on.
//!
//! | module | what it is |
//! |---|---|
//! | [`cli`] | the command line of luo-qemu |
//! | [`options`] | the command line of QEMU, taken apart |
//! | [`survival`] | whether a guest with that command line can live through an update |
//! | [`qmp`] | the connection to QEMU's monitor |
//! | [`ram`] | the memfd that is the guest's RAM |
//! | [`machine`] | a running QEMU: started, saved, loaded, stopped |
//! | [`manifest`] | what is to be known of a guest in the next kernel |
//! | [`service`] | the life of a guest, from one update to the next |

mod cli;
mod machine;
mod manifest;
mod options;
mod qmp;
mod ram;
mod service;
mod survival;

use clap::Parser;
use std::{
    error::Error,
    process::ExitCode, //
};

/// What most functions return: a failure is one line for people.
type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();

    match service::run(arguments.verb) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("luo-qemu: {why}");
            ExitCode::FAILURE
        }
    }
}
