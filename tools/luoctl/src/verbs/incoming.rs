// SPDX-License-Identifier: GPL-2.0

//! Incoming sessions: taking files out of them, and ending them.

use crate::{
    cli::{
        Arguments,
        TokenPath,
        Verb, //
    },
    copy::{
        copy_sparse,
        progress_bar, //
    },
    exit::{
        Exit,
        Failure,
        Outcome, //
    },
    keep::{
        at_agent,
        Held, //
    },
    output::{
        Output,
        Size, //
    },
};
use liveupdate::{
    listing::{
        Listing,
        SessionEntry, //
    },
    DirectionKind,
    SessionName,
    Token, //
};
use nix::sys::statfs::{
    fstatfs,
    TMPFS_MAGIC, //
};
use serde::Serialize;
use serde_json::json;
use std::{
    fs::{
        self,
        File, //
    },
    io::{
        self,
        IsTerminal,
        Write, //
    },
    path::{
        Path,
        PathBuf, //
    },
};
use tempfile::NamedTempFile;

/// What the kernel tells of a session, if it does so.
fn entry(name: &SessionName) -> Option<SessionEntry> {
    let listing = Listing::read(DirectionKind::Incoming).ok()?;

    listing.session(name).cloned()
}

/// The tokens of a session that nobody has retrieved; [`None`] if that cannot be known.
fn left(name: &SessionName) -> Option<Vec<Token>> {
    let files = entry(name)?.files;

    // What failed for good cannot be lost any more. All else could.
    let left = files.iter().filter(|file| file.is_waiting());
    Some(left.map(|file| file.token).collect())
}

fn list(tokens: &[Token]) -> String {
    let tokens: Vec<_> = tokens.iter().map(Token::to_string).collect();
    tokens.join(", ")
}

/// A file that was written.
#[derive(Serialize)]
struct Written {
    token: Token,
    path: PathBuf,
    bytes: u64,
    /// Else the file has become the preserved one.
    copied: bool,
}

/// An output file: complete under a temporary name, or not there.
struct Target {
    token: Token,
    path: PathBuf,
    file: NamedTempFile,
}

impl Target {
    /// Makes sure that a file can be written before anything is taken.
    fn prepare(wanted: &TokenPath, force: bool) -> Outcome<Self> {
        let TokenPath { token, path } = wanted;
        let what = || format!("write {}", path.display());

        match path.symlink_metadata() {
            Ok(meta) if meta.is_dir() => {
                return Err(Failure::io(what(), &io::ErrorKind::IsADirectory.into()));
            }
            Ok(_) if !force => {
                return Err(Failure::io(what(), &io::ErrorKind::AlreadyExists.into())
                    .hint("--force overwrites it"));
            }
            _ => {}
        }
        let file = tempfile::Builder::new()
            .prefix(".luoctl-")
            .tempfile_in(parent(path))
            // Its own message has the temporary path, which is no help.
            .map_err(|err| Failure::io(what(), &err.kind().into()))?;
        Ok(Self {
            token: *token,
            path: path.clone(),
            file,
        })
    }

    /// Retrieves the file into this one if that is on a tmpfs, where nothing has to be copied. Whether
    /// that was possible; else nothing has changed.
    fn becomes_it(&self, held: &Held) -> bool {
        fstatfs(&self.file).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC)
            && held.session.retrieve_into(self.token, &self.file).is_ok()
    }

    /// Retrieves the file and, if need be, copies it, to the disk.
    fn fill(&self, held: &Held) -> Outcome<Written> {
        let copied = !self.becomes_it(held);
        if copied {
            self.copy(held)?;
        }
        let meta = self.file.as_file().metadata();
        let meta =
            meta.map_err(|err| Failure::io(format_args!("look at {}", self.path.display()), &err))?;
        Ok(Written {
            token: self.token,
            path: self.path.clone(),
            bytes: meta.len(),
            copied,
        })
    }

    fn copy(&self, held: &Held) -> Outcome {
        let Self { token, path, file } = self;
        let memory = File::from(held.session.retrieve(*token)?);
        let meta = memory
            .metadata()
            .map_err(|err| Failure::io(format_args!("look at token {token}"), &err))?;
        if !meta.is_file() {
            return Err(Failure::new(
                Exit::Failure,
                format_args!("token {token} is no file that can be copied"),
            ));
        }
        let bar = progress_bar(format!("token {token}"));
        copy_sparse(&memory, file.as_file(), &bar)
            .and_then(|_| file.as_file().sync_all())
            .map_err(|err| Failure::io(format_args!("write {}", path.display()), &err))
    }

    /// Gives the file its name.
    fn rename(self, force: bool) -> Outcome {
        let Self { path, file, .. } = self;
        let renamed = match force {
            true => file.persist(&path),
            false => file.persist_noclobber(&path),
        };

        renamed
            .map_err(|err| err.error)
            .and_then(|_| File::open(parent(&path))?.sync_all())
            .map_err(|err| Failure::io(format_args!("write {}", path.display()), &err))
    }
}

/// The directory of a file.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// `luoctl retrieve`
pub fn retrieve(arguments: &Arguments, output: Output, name: SessionName) -> Outcome {
    let Verb::Retrieve {
        files,
        all,
        force,
        discard_rest,
        keep,
        ..
    } = &arguments.verb
    else {
        return Ok(());
    };
    let wanted = match all {
        None => files.clone(),
        Some(directory) => all_files(&name, directory)?,
    };
    for (number, file) in wanted.iter().enumerate() {
        let twice = |other: &TokenPath| other.path == file.path || other.token == file.token;
        if wanted[..number].iter().any(twice) {
            return Err(Failure::new(
                Exit::Invalid,
                format_args!("{} is there twice", file.path.display()),
            ));
        }
    }
    let targets: Vec<_> = wanted
        .iter()
        .map(|file| Target::prepare(file, *force))
        .collect::<Outcome<_>>()?;

    let held = Held::take(arguments, name)?;
    let written = match write_out(&held, targets, *force) {
        Ok(written) => written,
        Err(failure) => {
            let keeper = held.leave();
            let also = format!(
                "nothing is lost: session '{name}' can be retrieved again, {keeper} holds it"
            );
            let hint = match &failure.hint {
                Some(hint) => format!("{hint}; {also}"),
                None => also,
            };
            return Err(failure.hint(hint));
        }
    };

    let (finished, note) = end(held, &name, &wanted, *discard_rest, *keep)?;
    let value = json!({"session": name, "files": written, "finished": finished});
    output.result(&value, |out| {
        for Written {
            token, path, bytes, ..
        } in &written
        {
            writeln!(out, "token {token}: {} in {}", Size(*bytes), path.display())?;
        }
        Ok(())
    })?;
    output.note(format_args!("luoctl: session '{name}' {note}"));
    Ok(())
}

/// What `--all` stands for.
fn all_files(name: &SessionName, directory: &Path) -> Outcome<Vec<TokenPath>> {
    let Some(entry) = entry(name) else {
        return Err(Failure::new(
            Exit::NoSuch,
            format_args!("no session '{name}' is listed by the kernel"),
        )
        .hint(
            "`luoctl list` shows what there is; name the tokens if this kernel does not list them",
        ));
    };
    fs::create_dir_all(directory)
        .map_err(|err| Failure::io(format_args!("make {}", directory.display()), &err))?;

    let path = |token: Token| TokenPath {
        token,
        path: directory.join(token.to_string()),
    };
    Ok(entry.files.iter().map(|file| path(file.token)).collect())
}

/// Writes all files, and gives them their names when the last one is complete.
fn write_out(held: &Held, targets: Vec<Target>, force: bool) -> Outcome<Vec<Written>> {
    let mut written = Vec::new();

    for target in &targets {
        written.push(target.fill(held)?);
    }
    for target in targets {
        target.rename(force)?;
    }
    Ok(written)
}

/// Finishes the session if nothing is lost by that; whether it did, and what to say.
fn end(
    held: Held,
    name: &SessionName,
    taken: &[TokenPath],
    discard_rest: bool,
    keep: bool,
) -> Outcome<(bool, String)> {
    let left = left(name).map(|mut left| {
        left.retain(|token| !taken.iter().any(|file| file.token == *token));
        left
    });
    let why = match left {
        _ if keep => "as asked for".to_owned(),
        _ if discard_rest => {
            held.finish()?;
            return Ok((true, "finished, what was left of it discarded".into()));
        }
        Some(left) if left.is_empty() => {
            held.finish()?;
            return Ok((true, "finished".into()));
        }
        Some(left) => format!("since nobody has retrieved {}", list(&left)),
        None => "since this kernel does not tell whether there are more files".to_owned(),
    };
    let keeper = held.leave();
    Ok((
        false,
        format!(
            "not finished, {why}; {keeper} holds it until `luoctl retrieve` or `luoctl discard`"
        ),
    ))
}

/// `luoctl finish`
pub fn finish(arguments: &Arguments, output: Output, name: SessionName) -> Outcome {
    let refused = |why: String| {
        Failure::new(
            Exit::Failure,
            format_args!("session '{name}' is not finished: {why}"),
        )
        .hint(format!(
            "`luoctl retrieve` takes files out; `luoctl discard {name}` destroys them"
        ))
    };

    // Looked at before it is taken, so that a refusal changes nothing.
    match left(&name) {
        Some(left) if left.is_empty() => {}
        Some(left) => return Err(refused(format!("nobody has retrieved {}", list(&left)))),
        None => {
            // That there is none is clearer, and the same to the kernel.
            Held::take(arguments, name)?.leave();
            return Err(refused("this kernel does not tell what is in it".into()));
        }
    }
    Held::take(arguments, name)?.finish()?;
    ended(output, name, "finished")
}

/// `luoctl discard`
pub fn discard(arguments: &Arguments, output: Output, name: SessionName, yes: bool) -> Outcome {
    let what = match entry(&name) {
        Some(entry) => format!(
            "session '{name}' with {}",
            super::look::counted(entry.files.len(), "file")
        ),
        None => format!("session '{name}'"),
    };

    if !yes {
        confirm(&what)?;
    }
    match at_agent(arguments, &name)? {
        // It may have nothing left of it but the name.
        Some((mut luod, id)) => {
            luod.ask(json!({"cmd": "DISCARD", "id": id}), &[])?;
        }
        None => Held::take(arguments, name)?.finish()?,
    }
    ended(output, name, "discarded")
}

fn ended(output: Output, name: SessionName, how: &str) -> Outcome {
    output.result(&json!({"session": name, "outcome": how}), |out| {
        writeln!(out, "session '{name}' {how}")
    })
}

/// Asks the user on the terminal.
fn confirm(what: &str) -> Outcome {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::new(
            Exit::Failure,
            format_args!("{what} is not discarded without a yes"),
        )
        .hint("say --yes"));
    }
    let mut line = String::new();
    let answered = write!(io::stderr(), "Destroy {what}? [y/N] ")
        .and_then(|()| io::stdin().read_line(&mut line));
    match answered {
        Ok(_) if matches!(line.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::new(
            Exit::Failure,
            format_args!("{what} is still there"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(path: PathBuf) -> TokenPath {
        TokenPath {
            token: Token(1),
            path,
        }
    }

    #[test]
    fn what_cannot_be_written_is_known_before() {
        let directory = tempfile::tempdir().unwrap();
        let there = directory.path().join("there");
        fs::write(&there, "old").unwrap();
        let prepare = |path: &Path, force| Target::prepare(&wanted(path.into()), force).err();

        assert!(prepare(&there, false)
            .unwrap()
            .hint
            .unwrap()
            .contains("--force"));
        assert!(prepare(&there, true).is_none());
        assert!(prepare(directory.path(), true).is_some());
        let missing = directory.path().join("no/such");
        let failure = prepare(&missing, false).unwrap();
        assert!(failure.message.contains("no/such") && !failure.message.contains(".luoctl-"));
        // Nothing is left behind, and nothing was touched.
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(fs::read(&there).unwrap(), b"old");
    }

    #[test]
    fn a_file_that_came_meanwhile_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let target = Target::prepare(&wanted(path.clone()), false).unwrap();
        fs::write(&path, "new").unwrap();

        assert!(target.rename(false).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let target = Target::prepare(&wanted(path.clone()), true).unwrap();
        target.rename(true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
