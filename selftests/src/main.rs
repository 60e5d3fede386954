// SPDX-License-Identifier: GPL-2.0

//! Tests of the Live Update Orchestrator, seen from user space.
//!
//! The program is the first process of an initramfs that has nothing else but `/boot/kernel`. The
//! kernel's command line says what to run:
//!
//! | parameter | meaning |
//! |---|---|
//! | `luo.test=NAME,...` | the tests; `@live` and `@kexec` stand for all that can share one boot, without and with kexecs |
//! | `luo.core=c` | the kernel has the C LUO: a group leaves out the tests that differ on it |
//! | `luo.memfd=c` | the kernel has the C memfd handler: a group leaves out the tests that need the Rust one |
//! | `luo.kernels=FILE,...` | which kernels to boot in the second stage, the third, ...; the last one for all that follow |
//! | `luo.stage=N`, `luo.state=...` | for the program's own use in the stages that follow |
//!
//! Results go to the second serial port as KTAP, ending with a line `done`. On a host,
//! `luo-selftest list` prints what there is, and `luo-selftest run` runs what needs no kexec on the
//! kernel that is there, as a kselftest does.

mod agent;
mod harness;
mod here;
mod init;
mod module;
mod sys;
mod tests;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::run();
    }

    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["list"] => {
            for test in tests::all() {
                println!("{test}");
            }
            ExitCode::SUCCESS
        }
        ["run", ref names @ ..] => here::run(names),
        // The runner of kselftests gives no arguments.
        [] => here::run(&[]),
        _ => {
            eprintln!("usage: luo-selftest list | [run [TEST...]]");
            eprintln!(
                "As the first process of a virtual machine it reads the kernel's command line."
            );
            ExitCode::from(2)
        }
    }
}
