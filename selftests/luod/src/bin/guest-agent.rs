// SPDX-License-Identifier: GPL-2.0

//! Runs commands in a virtual machine for the test outside (`scripts/lib/debian_guest.py`).
//!
//! `guest-agent PORT` talks over a serial port, one JSON object a line:
//!
//! - at its start it sends `{"hello": BOOT_ID, "release": RELEASE}`, so the other side notices each
//!   kernel, and each restart;
//! - it gets `{"id": N, "argv": [...], "stdin": TEXT, "timeout": SECONDS}`;
//! - it sends `{"id": N, "status": S, "out": TEXT, "err": TEXT}` when the command has ended, where a
//!   signal counts as a negative status, or `{"id": N, "error": TEXT}`.
//!
//! Commands run side by side. Lines that are no such object are ignored: a kexec in the middle of
//! one leaves half a line behind.

use nix::sys::{
    signal::{
        killpg,
        Signal, //
    },
    termios::{
        cfmakeraw,
        tcgetattr,
        tcsetattr,
        SetArg, //
    },
    utsname::uname,
};
use serde_json::{
    json,
    Value, //
};
use std::{
    env,
    fs::{
        self,
        File,
        OpenOptions, //
    },
    io::{
        self,
        BufRead,
        BufReader,
        Read,
        Write, //
    },
    os::unix::process::{
        CommandExt,
        ExitStatusExt, //
    },
    process::{
        Command,
        ExitCode,
        Stdio, //
    },
    sync::{
        mpsc,
        Arc,
        Mutex, //
    },
    thread,
    time::Duration,
};

fn main() -> ExitCode {
    let Some(port) = env::args().nth(1) else {
        eprintln!("usage: guest-agent PORT");
        return ExitCode::from(2);
    };
    match serve(&port) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("guest-agent: {port}: {err}");
            ExitCode::FAILURE
        }
    }
}

/// Serves a port until it ends.
fn serve(port: &str) -> io::Result<()> {
    let input = OpenOptions::new().read(true).write(true).open(port)?;
    let mut settings = tcgetattr(&input)?;
    cfmakeraw(&mut settings);
    tcsetattr(&input, SetArg::TCSANOW, &settings)?;

    let output = Arc::new(Mutex::new(input.try_clone()?));
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let release = uname()?.release().to_string_lossy().into_owned();
    send(&output, &json!({"hello": boot.trim(), "release": release}))?;

    for line in BufReader::new(input).split(b'\n') {
        let Ok(request) = serde_json::from_slice::<Value>(&line?) else {
            continue;
        };
        let output = output.clone();
        thread::spawn(move || {
            let id = &request["id"];
            let answer = match run(&request) {
                Ok((status, out, err)) => {
                    json!({"id": id, "status": status, "out": out, "err": err})
                }
                Err(err) => json!({"id": id, "error": err.to_string()}),
            };
            // If it cannot be told, the other side's time limit tells.
            let _ = send(&output, &answer);
        });
    }
    Ok(())
}

fn send(output: &Mutex<File>, message: &Value) -> io::Result<()> {
    let mut output = output.lock().map_err(|_| io::ErrorKind::Other)?;
    // A newline first: what stands before it may be half a line of an agent that was killed.
    output.write_all(format!("\n{message}\n").as_bytes())
}

/// Runs one command to its end; what it says is text.
fn run(request: &Value) -> io::Result<(i32, String, String)> {
    let argv: Vec<_> = request["argv"]
        .as_array()
        .map(|argv| argv.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let (program, arguments) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let group = i32::try_from(child.id()).map_err(io::Error::other)?;
    let group = nix::unistd::Pid::from_raw(group);

    // Given the time that it has, it is killed with its children.
    let timeout = Duration::from_secs(request["timeout"].as_u64().unwrap_or(60));
    let (ended, end) = mpsc::channel::<()>();
    let guard = thread::spawn(move || {
        let late = end.recv_timeout(timeout) == Err(mpsc::RecvTimeoutError::Timeout);
        late && killpg(group, Signal::SIGKILL).is_ok()
    });
    if let Some(mut stdin) = child.stdin.take() {
        // A command need not read all of it.
        let _ = stdin.write_all(request["stdin"].as_str().unwrap_or("").as_bytes());
    }
    let err = child.stderr.take().map(|err| thread::spawn(|| text(err)));
    let out = child.stdout.take().map(text).unwrap_or_default();
    let err = err.and_then(|err| err.join().ok()).unwrap_or_default();
    let status = child.wait()?;
    drop(ended);
    if guard.join().unwrap_or(false) {
        return Err(io::Error::other(format!("no end after {timeout:?}")));
    }
    let status = status.code().or(status.signal().map(|signal| -signal));
    Ok((status.unwrap_or(-1), out, err))
}

fn text(mut from: impl Read) -> String {
    let mut bytes = Vec::new();
    // What was read until the end or an error is all that there is.
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}
