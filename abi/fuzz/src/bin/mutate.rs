// SPDX-License-Identifier: GPL-2.0

//! Runs the fuzz target without libFuzzer: mutations of the corpus, as many as one likes.
//!
//! ```text
//! cargo run --release --bin mutate -- COUNT [SEED]
//! ```
//!
//! All processors take part. An input that makes the target panic is written to `crash-...`.

use luo_abi_fuzz::{
    run,
    Random, //
};
use std::{
    env,
    fs,
    io,
    panic,
    path::PathBuf,
    process::ExitCode,
    thread,
    time::Instant, //
};

fn main() -> io::Result<ExitCode> {
    let mut numbers = env::args().skip(1).map(|word| word.parse::<u64>());
    let mut number = |default| numbers.next().and_then(Result::ok).unwrap_or(default);
    let (count, seed) = (number(100_000), number(1));
    // Not that of the build, which may have been another clone's.
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let folder = root.join("corpus/handover");
    let corpus = fs::read_dir(folder)?
        .map(|entry| fs::read(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    let threads = thread::available_parallelism()?.get() as u64;
    let start = Instant::now();

    let found: u64 = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let corpus = &corpus;
                scope.spawn(move || {
                    let mut random = Random::new(seed * threads + worker);
                    let mut found = 0;
                    for _ in 0..count.div_ceil(threads) {
                        let input = random.input(corpus);
                        if panic::catch_unwind(|| run(&input)).is_err() {
                            found += 1;
                            let name = format!("crash-{seed}-{worker}-{found}");
                            eprintln!("{name}: {:?}", fs::write(&name, &input));
                        }
                    }
                    found
                })
            })
            .collect();
        workers.into_iter().map(|it| it.join().unwrap_or(1)).sum()
    });
    let seconds = start.elapsed().as_secs();
    println!("{count} executions in {seconds} s, {found} failures");
    Ok(if found == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
