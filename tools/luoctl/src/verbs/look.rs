// SPDX-License-Identifier: GPL-2.0

//! What there is: status, sessions, clients. Nothing here opens the device.

use crate::{
    cli::Arguments,
    exit::{
        Exit,
        Failure,
        Outcome, //
    },
    luod::Luod,
    output::{
        Output,
        Table,
        BAD,
        GOOD,
        WARN, //
    },
};
use liveupdate::{
    holders::{
        self,
        Holder, //
    },
    kexec,
    listing::{
        FileEntry,
        Listing, //
    },
    status::{
        Counts,
        State,
        Status,
        Support, //
    },
    DirectionKind,
    Errno,
    SessionName, //
};
use serde::Serialize;
use serde_json::{
    json,
    Value, //
};
use std::io::{
    self,
    Write, //
};

/// What the agent says, [`None`] if there is none. A user that is no operator learns that there is one.
fn agent(arguments: &Arguments) -> Outcome<Option<Value>> {
    let Some(mut luod) = Luod::connect(&arguments.socket)? else {
        return Ok(None);
    };

    Ok(Some(match luod.ask(json!({"cmd": "STATUS"}), &[]) {
        Ok(status) => status.value,
        Err(failure) => json!({"error": failure.message}),
    }))
}

/// The state of the machine.
#[derive(Serialize)]
struct Everything {
    live_update: Support,
    kernel_loaded: Option<bool>,
    agent: Option<Value>,
}

/// `luoctl status`
pub fn status(arguments: &Arguments, output: Output) -> Outcome<Exit> {
    let all = Everything {
        live_update: Support::read()?,
        kernel_loaded: kexec::is_loaded().ok(),
        agent: agent(arguments).unwrap_or_else(|failure| Some(json!({"error": failure.message}))),
    };

    output.result(&all, |out| all.show(out))?;
    Ok(match all.live_update {
        Support::On(_) | Support::DeviceOnly => Exit::Success,
        Support::Off | Support::Absent => Exit::NotRunning,
    })
}

impl Everything {
    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        match &self.live_update {
            Support::Absent => writeln!(
                out,
                "live update  {BAD}not there{BAD:#}; boot a kernel that has it with liveupdate=on"
            )?,
            Support::Off => writeln!(
                out,
                "live update  {BAD}off{BAD:#}; boot with liveupdate=on and kho=on, or see the kernel log"
            )?,
            Support::DeviceOnly => writeln!(
                out,
                "live update  {GOOD}on{GOOD:#}; this kernel's implementation tells no more"
            )?,
            Support::On(status) => show_status(status, out)?,
        }
        match self.kernel_loaded {
            Some(true) => writeln!(out, "next kernel  loaded")?,
            Some(false) => writeln!(out, "next kernel  not loaded")?,
            None => writeln!(
                out,
                "next kernel  cannot be loaded: this kernel has no kexec"
            )?,
        }
        let Some(agent) = &self.agent else {
            return writeln!(out, "agent        not running");
        };
        if let Some(error) = agent["error"].as_str() {
            return writeln!(out, "agent        running; {error}");
        }
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let len = |value: &Value| value.as_array().map_or(0, Vec::len);
        writeln!(
            out,
            "agent        {}, {}, {}, {} kept",
            text(&agent["agent"]),
            text(&agent["state"]),
            counted(len(&agent["clients"]), "client"),
            counted(len(&agent["sessions"]), "session"),
        )?;
        let last = &agent["last"];
        match (text(&last["outcome"]).as_str(), last["reason"].as_str()) {
            ("?", _) => Ok(()),
            (outcome, Some(reason)) => {
                writeln!(out, "last update  {WARN}{outcome}{WARN:#}: {reason}")
            }
            (outcome, None) => writeln!(out, "last update  {outcome}"),
        }
    }
}

fn show_status(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let colour = match status.state {
        State::Normal => GOOD,
        _ => WARN,
    };
    writeln!(out, "live update  {colour}{}{colour:#}", status.state)?;
    writeln!(out, "number       {}", status.number)?;
    let mut side = |what: &str, counts: &Counts, format: &Option<String>| {
        let format = format.as_deref().map(|format| format!(", format {format}"));
        writeln!(
            out,
            "{what}     {}, {}, {}{}",
            counted(counts.sessions, "session"),
            counted(counts.files, "file"),
            counted(counts.subsystems, "subsystem"),
            format.unwrap_or_default(),
        )
    };
    side("outgoing", &status.outgoing, &status.outgoing_format)?;
    side("incoming", &status.incoming, &status.incoming_format)?;
    match status.blackout {
        Some(blackout) => writeln!(out, "blackout     {:.3} s", blackout.as_secs_f64()),
        None => Ok(()),
    }
}

/// A number of things.
pub fn counted(number: impl TryInto<u64>, thing: &str) -> String {
    match number.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {thing}"),
        number => format!("{number} {thing}s"),
    }
}

/// A session, from wherever something is known about it.
#[derive(Debug, Serialize)]
struct Row {
    session: SessionName,
    direction: Option<DirectionKind>,
    state: Option<String>,
    files: Option<Vec<FileEntry>>,
    holders: Vec<Holder>,
    client: Option<String>,
}

/// All sessions, and what could not be asked.
struct Sessions {
    rows: Vec<Row>,
    quarantined: Vec<String>,
    /// Why files and states are not known.
    unknown: Option<String>,
}

impl Sessions {
    fn find(agent: Option<&Value>) -> Outcome<Self> {
        let mut holders = holders::find()?;
        let mut all = Self {
            rows: Vec::new(),
            quarantined: Vec::new(),
            unknown: None,
        };

        for side in [DirectionKind::Outgoing, DirectionKind::Incoming] {
            let listing = match Listing::read(side) {
                Ok(listing) => listing,
                Err(err) => {
                    all.unknown = Some(match err.errno() {
                        Errno::EACCES | Errno::EPERM => {
                            "files and states are for root to see".into()
                        }
                        Errno::ENOENT => "this kernel does not list sessions, or debugfs is not \
                             mounted: these are those that processes have open"
                            .into(),
                        _ => err.to_string(),
                    });
                    continue;
                }
            };
            all.quarantined.extend(listing.quarantined);
            all.rows
                .extend(listing.sessions.into_iter().map(|entry| Row {
                    session: entry.name,
                    direction: Some(side),
                    state: Some(entry.state),
                    files: Some(entry.files),
                    holders: Vec::new(),
                    client: None,
                }));
        }
        // Of two sessions of one name it is the outgoing one that is likely held, or both are.
        for row in &mut all.rows {
            if row.state.as_deref() != Some("waiting") {
                let mine = holders
                    .iter()
                    .filter(|holder| holder.session == row.session);
                row.holders = mine.cloned().collect();
            }
        }
        holders.retain(|holder| !all.rows.iter().any(|row| row.session == holder.session));
        for holder in holders {
            match all
                .rows
                .iter_mut()
                .find(|row| row.session == holder.session)
            {
                Some(row) => row.holders.push(holder),
                None => all.rows.push(Row {
                    session: holder.session,
                    direction: None,
                    state: None,
                    files: None,
                    holders: vec![holder],
                    client: None,
                }),
            }
        }
        if let Some(agent) = agent {
            all.add_agent(agent);
        }
        Ok(all)
    }

    /// Adds what the agent knows: whose sessions are, and those that the kernel does not list (any
    /// more).
    fn add_agent(&mut self, agent: &Value) {
        for list in ["sessions", "clients"] {
            for entry in agent[list].as_array().into_iter().flatten() {
                let Some(name) = entry["session"].as_str() else {
                    continue;
                };
                let client = entry["id"].as_str().map(str::to_owned);
                let mut known = false;
                for row in &mut self.rows {
                    if row.session.to_string() == name {
                        row.client.clone_from(&client);
                        known = true;
                    }
                }
                if let (false, "sessions", Ok(session)) = (known, list, SessionName::new(name)) {
                    self.rows.push(Row {
                        session,
                        direction: Some(DirectionKind::Incoming),
                        state: entry["state"].as_str().map(str::to_owned),
                        files: None,
                        holders: Vec::new(),
                        client,
                    });
                }
            }
        }
    }
}

/// `luoctl list`
pub fn list(arguments: &Arguments, output: Output) -> Outcome {
    let agent = agent(arguments)?;
    let all = Sessions::find(agent.as_ref())?;
    let clients = agent.as_ref().map(|agent| &agent["clients"]);
    let value = json!({
        "sessions": all.rows,
        "quarantined": all.quarantined,
        "clients": clients,
    });

    output.result(&value, |out| {
        let mut table = Table::new(&["SESSION", "SIDE", "STATE", "FILES", "HOLDER", "CLIENT"]);
        let dash = || "-".to_owned();
        for row in &all.rows {
            let mut holders: Vec<String> = row.holders.iter().map(holder).collect();
            holders.dedup();
            table.row([
                row.session.to_string(),
                row.direction.map_or_else(dash, |side| side.to_string()),
                row.state.clone().unwrap_or_else(dash),
                row.files
                    .as_ref()
                    .map_or_else(dash, |files| files.len().to_string()),
                if holders.is_empty() {
                    dash()
                } else {
                    holders.join(",")
                },
                row.client.clone().unwrap_or_else(dash),
            ]);
        }
        table.write(out)?;
        for what in &all.quarantined {
            writeln!(out, "{BAD}corrupt{BAD:#}: {what}")?;
        }
        show_clients(clients, out)
    })?;
    if let Some(unknown) = all.unknown {
        output.note(format_args!("luoctl: {unknown}"));
    }
    Ok(())
}

fn holder(holder: &Holder) -> String {
    format!("{}({})", holder.command, holder.pid)
}

/// The agent's clients, those that have no session yet included.
fn show_clients(clients: Option<&Value>, out: &mut dyn Write) -> io::Result<()> {
    let clients = clients.and_then(Value::as_array);
    let Some(clients) = clients.filter(|clients| !clients.is_empty()) else {
        return Ok(());
    };
    let mut table = Table::new(&["CLIENT", "CLASS", "STATE", "UID", "UNIT", "PID"]);
    for client in clients {
        let cell = |member: &str| match &client[member] {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        table.row(["id", "class", "state", "uid", "unit", "pid"].map(cell));
    }
    writeln!(out)?;
    table.write(out)
}

/// `luoctl show`
pub fn show(arguments: &Arguments, output: Output, name: SessionName) -> Outcome {
    let agent = agent(arguments)?;
    let all = Sessions::find(agent.as_ref())?;
    let text = name.to_string();
    let rows: Vec<_> = all
        .rows
        .iter()
        .filter(|row| row.session == name || row.client.as_deref() == Some(&text))
        .collect();
    let clients = agent.as_ref().and_then(|agent| agent["clients"].as_array());
    let client = clients.and_then(|all| all.iter().find(|it| it["id"] == *text));
    if rows.is_empty() && client.is_none() {
        let failure = Failure::new(Exit::NoSuch, format_args!("there is no session '{name}'"));
        return Err(match all.unknown {
            Some(unknown) => failure.hint(unknown),
            None => failure.hint("`luoctl list` shows what there is"),
        });
    }

    let value = json!({"sessions": rows, "client": client});
    output.result(&value, |out| {
        for row in &rows {
            let or = |text: Option<String>| text.unwrap_or_else(|| "unknown".into());
            writeln!(out, "session    {}", row.session)?;
            writeln!(
                out,
                "direction  {}",
                or(row.direction.map(|side| side.to_string()))
            )?;
            writeln!(out, "state      {}", or(row.state.clone()))?;
            for holder in &row.holders {
                let Holder {
                    pid, fd, command, ..
                } = holder;
                writeln!(out, "held by    process {pid} ({command}), descriptor {fd}")?;
            }
            if let Some(client) = &row.client {
                writeln!(out, "client     {client}")?;
            }
            let Some(files) = row.files.as_ref().filter(|files| !files.is_empty()) else {
                continue;
            };
            let mut table = Table::new(&["TOKEN", "HANDLER", "STATE", "DETAILS"]);
            for file in files {
                table.row([
                    file.token.to_string(),
                    file.handler.clone(),
                    file.state.clone(),
                    file.details.clone(),
                ]);
            }
            table.write(out)?;
        }
        if let Some(Value::Object(client)) = client {
            for (member, value) in client.iter().filter(|(_, value)| !value.is_null()) {
                match value {
                    Value::String(text) => writeln!(out, "{member:<10} {text}")?,
                    other => writeln!(out, "{member:<10} {other}")?,
                }
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_knows() {
        let row = |name: &str| Row {
            session: SessionName::new(name).unwrap(),
            direction: Some(DirectionKind::Incoming),
            state: Some("waiting".into()),
            files: None,
            holders: Vec::new(),
            client: None,
        };
        let mut all = Sessions {
            rows: vec![row("luod.a"), row("other")],
            quarantined: Vec::new(),
            unknown: None,
        };
        all.add_agent(&json!({
            "sessions": [
                {"id": "a", "session": "luod.a", "state": "unclaimed"},
                {"id": "b", "session": "luod.b", "state": "lost"},
            ],
            "clients": [{"id": "c", "session": null}],
        }));
        let told: Vec<_> = all
            .rows
            .iter()
            .map(|row| {
                (
                    row.session.to_string(),
                    row.state.as_deref(),
                    row.client.as_deref(),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("luod.a".to_owned(), Some("waiting"), Some("a")),
                ("other".to_owned(), Some("waiting"), None),
                ("luod.b".to_owned(), Some("lost"), Some("b")),
            ]
        );
    }

    #[test]
    fn numbers() {
        assert_eq!(counted(0_u64, "file"), "0 files");
        assert_eq!(counted(1_u64, "file"), "1 file");
        assert_eq!(counted(2_usize, "session"), "2 sessions");
    }
}
