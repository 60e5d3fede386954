// SPDX-License-Identifier: GPL-2.0

//! Live updates from the command line.
//!
//! What an operator does by hand, and what scripts do: look, hold files in a session, check, load and
//! start the next kernel, take the files back there. Where the agent luod runs the tool asks it, else
//! it asks the kernel itself.

mod cli;
mod copy;
mod exit;
mod keep;
mod luod;
mod output;
mod verbs;

use clap::Parser;
use cli::Arguments;
use output::Output;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output {
        json: arguments.json,
    };

    match verbs::run(&arguments, output) {
        Ok(code) => code,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}
