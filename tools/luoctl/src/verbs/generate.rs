// SPDX-License-Identifier: GPL-2.0

//! Manual pages and completions, made of the command line's definition.

use crate::{
    cli::Arguments,
    exit::{
        Failure,
        Outcome, //
    },
};
use clap::CommandFactory;
use clap_complete::Shell;
use std::{
    fs,
    path::Path, //
};

/// Writes `man/luoctl*.1` and `completions/` into a directory.
pub fn generate(directory: &Path) -> Outcome {
    let failed = |err| Failure::io(format_args!("write into {}", directory.display()), &err);
    let (man, completions) = (directory.join("man"), directory.join("completions"));

    fs::create_dir_all(&man).map_err(failed)?;
    fs::create_dir_all(&completions).map_err(failed)?;
    clap_mangen::generate_to(Arguments::command(), &man).map_err(failed)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut Arguments::command(), "luoctl", &completions)
            .map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_made() {
        let directory = tempfile::tempdir().unwrap();
        generate(directory.path()).unwrap();

        let made = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(made("man/luoctl.1").contains("Exit status"));
        assert!(made("man/luoctl-retrieve.1").contains("discard\\-rest"));
        assert!(made("completions/luoctl.bash").contains("retrieve"));
        assert!(made("completions/_luoctl").contains("retrieve"));
        assert!(made("completions/luoctl.fish").contains("retrieve"));
        assert!(!directory.path().join("man/luoctl-keep.1").exists());
    }
}
