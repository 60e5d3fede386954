// SPDX-License-Identifier: GPL-2.0

//! Says something to luod, and prints what it hears.
//!
//! `luod-say COMMAND` sends one command of version 1 (JSON, or the word of one without members) and
//! prints the answer. `luod-say update KERNEL CMDLINE [INITRD]` has luod update the machine and
//! prints all events until that is over. The status is 1 if the last line is an `ERROR` or tells
//! of an update that was aborted.

use nix::sys::socket::{
    sendmsg,
    ControlMessage,
    MsgFlags, //
};
use serde_json::{
    json,
    Value, //
};
use std::{
    env,
    error::Error,
    fs::File,
    io::{
        BufRead,
        BufReader,
        IoSlice, //
    },
    os::{
        fd::AsRawFd,
        unix::net::UnixStream, //
    },
    process::ExitCode,
};

fn main() -> ExitCode {
    let words: Vec<_> = env::args().skip(1).collect();
    match run(&words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("luod-say: {err}");
            ExitCode::from(2)
        }
    }
}

fn run(words: &[String]) -> Result<bool, Box<dyn Error>> {
    let socket = UnixStream::connect("/run/luod/liveupdate.sock")?;
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let (command, files) = match words[..] {
        ["update", kernel, cmdline, ref initrd @ ..] => {
            let command =
                json!({"cmd": "UPDATE", "cmdline": cmdline, "initrd": !initrd.is_empty()});
            let mut files = vec![File::open(kernel)?];
            for initrd in initrd {
                files.push(File::open(initrd)?);
            }
            (command, files)
        }
        [text] => match serde_json::from_str(text) {
            Ok(command) => (command, Vec::new()),
            Err(_) => (json!({"cmd": text}), Vec::new()),
        },
        _ => return Err("usage: luod-say COMMAND | update KERNEL CMDLINE [INITRD]".into()),
    };

    // Both lines at once: the descriptors belong to the second.
    let text = format!("{}\n{command}\n", json!({"cmd": "HELLO", "version": 1}));
    let fds: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control: &[_] = if fds.is_empty() { &[] } else { &rights };
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(text.as_bytes())],
        control,
        MsgFlags::empty(),
        None,
    )?;

    let is_update = command["cmd"] == "UPDATE";
    for line in BufReader::new(&socket).lines().skip(1) {
        let line = line?;
        let event: Value = serde_json::from_str(&line)?;
        println!("{line}");
        match event["event"].as_str() {
            Some("ERROR") => return Ok(false),
            Some("UPDATE") if event["outcome"] != "kexec" => {
                return Ok(event["outcome"] == "checked");
            }
            _ if is_update => {}
            _ => return Ok(true),
        }
    }
    // The machine went away under luod.
    Ok(is_update)
}
