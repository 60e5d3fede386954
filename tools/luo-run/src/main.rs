// SPDX-License-Identifier: GPL-2.0

//! Runs a restartable program as a client of the live update agent, so that what it has in memory
//! lives through an update of the kernel.
//!
//! A program is restartable if at a signal it writes down what it knows and ends, and goes on from there when it is
//! started again; memcached does with `-e`. Its large files are memfds, to which links in a folder lead, so
//! that the program opens them by ordinary names. What else it writes into that folder goes along.
//!
//! | module | what it is |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`folder`] | the folder with the program's files, and how it crosses the kexec |
//! | [`second`] | when the program ended, and the wait for another second |
//! | [`service`] | the life of the program, from one update to the next |

mod cli;
mod folder;
mod second;
mod service;

use clap::Parser;
use std::{
    error::Error,
    process::ExitCode, //
};

/// What most functions return: a failure is one line for people.
type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();

    let done = match &arguments.generate {
        Some(directory) => cli::generate(directory).map(|()| ExitCode::SUCCESS),
        None => service::run(&arguments),
    };
    done.unwrap_or_else(|why| {
        eprintln!("luo-run: {why}");
        ExitCode::FAILURE
    })
}
