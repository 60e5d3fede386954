// SPDX-License-Identifier: GPL-2.0

//! What a live update costs, in instructions.
//!
//! The program is the first process of an initramfs that has nothing else but `/boot/kernel`. It
//! makes a [load], takes it across a kexec and reports what each step took, on the second
//! serial port, as lines of a name and a number; the last line is `done`. In a virtual machine
//! whose clock counts instructions (`-icount shift=0`) these figures repeat exactly.
//!
//! `scripts/bench` runs it and says what the names mean.

mod clock;
mod load;
mod stages;

use std::io::Write;

fn main() {
    if std::process::id() != 1 {
        eprintln!("luo-bench: to be run as the first process of a virtual machine (make bench)");
        std::process::exit(2);
    }

    let start = clock::now();
    if let Err(why) = run(start) {
        eprintln!("luo-bench: {why}");
    }
    luo_guest::power_off();
}

fn run(start: u64) -> Result<(), Box<dyn std::error::Error>> {
    luo_guest::mount_all()?;
    let mut report = luo_guest::report_port()?;

    if let Err(why) = stages::run(start, &mut report) {
        writeln!(report, "failed: {why}")?;
    }
    writeln!(report, "done")?;
    report.flush()?;
    Ok(())
}
