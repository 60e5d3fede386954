// SPDX-License-Identifier: GPL-2.0

//! What goes to the terminal: tables, JSON, notes.
//!
//! Results go to standard output, everything else to standard error. Colours are taken out where
//! the output is no terminal, or `NO_COLOR` is set.

use crate::exit::{
    Exit,
    Failure,
    Outcome, //
};
use clap::builder::styling::{
    AnsiColor,
    Style, //
};
use serde::Serialize;
use std::{
    fmt,
    io::{
        self,
        Write, //
    },
};
use unicode_width::UnicodeWidthStr;

/// What is in order.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// What wants attention.
pub const WARN: Style = AnsiColor::Yellow.on_default();
/// What is wrong.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// Headings.
pub const HEAD: Style = Style::new().bold();

/// Where results go.
#[derive(Clone, Copy)]
pub struct Output {
    /// As JSON, one document a result.
    pub json: bool,
}

impl Output {
    /// Shows one result: as JSON, or by `show`.
    pub fn result<T: Serialize>(
        self,
        value: &T,
        show: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Outcome {
        let mut out = anstream::stdout().lock();
        let written = if self.json {
            serde_json::to_writer_pretty(&mut out, value)
                .map_err(io::Error::from)
                .and_then(|()| writeln!(out))
        } else {
            show(&mut out)
        };
        ended(written.and_then(|()| out.flush()))
    }

    /// Shows one of many results, which come over time: a line of JSON, or a line of text.
    pub fn event<T: Serialize>(self, value: &T, text: fmt::Arguments<'_>) -> Outcome {
        let mut out = anstream::stdout().lock();
        let written = if self.json {
            serde_json::to_writer(&mut out, value)
                .map_err(io::Error::from)
                .and_then(|()| writeln!(out))
        } else {
            writeln!(out, "{text}")
        };
        ended(written.and_then(|()| out.flush()))
    }

    /// Tells what happened on the way. JSON is for programs, which have the result.
    pub fn note(self, text: fmt::Arguments<'_>) {
        if !self.json {
            // Nobody is told that nobody can be told.
            let _ = writeln!(anstream::stderr().lock(), "{text}");
        }
    }

    /// Tells why the tool fails.
    pub fn failure(self, failure: &Failure) {
        let mut err = anstream::stderr().lock();
        let _ = if self.json {
            let value = serde_json::json!({
                "error": failure.message,
                "hint": failure.hint,
                "exit": failure.exit as i32,
            });
            writeln!(err, "{value}")
        } else {
            let Failure { message, hint, .. } = failure;
            let text = writeln!(err, "luoctl: {BAD}{message}{BAD:#}");
            match hint {
                Some(hint) => text.and_then(|()| writeln!(err, "luoctl: {hint}")),
                None => text,
            }
        };
    }
}

/// Nobody has to read to the end: `luoctl list | head -1` is no failure.
fn ended(written: io::Result<()>) -> Outcome {
    match written {
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(err) => Err(Failure::new(
            Exit::Failure,
            format_args!("cannot write the result: {err}"),
        )),
        Ok(()) => Ok(()),
    }
}

/// A table with a heading, its columns as wide as they must be.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Begins a table.
    pub fn new(heading: &[&str]) -> Self {
        Self {
            rows: vec![heading.iter().map(|text| (*text).to_owned()).collect()],
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Writes it.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell: &String| cell.width()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();

        for (number, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                let missing = (width + 2).saturating_sub(cell.width());
                line.extend(std::iter::repeat_n(' ', missing));
            }
            match (number, line.trim_end()) {
                (0, line) => writeln!(out, "{HEAD}{line}{HEAD:#}")?,
                (_, line) => writeln!(out, "{line}")?,
            }
        }
        Ok(())
    }
}

/// A number of bytes for people.
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = indicatif::BinaryBytes(self.0).to_string();
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns() {
        let mut table = Table::new(&["NAME", "N"]);
        table.row(["a".into(), "1".into()]);
        table.row(["größer".into(), "22".into()]);
        table.row(["漢字".into(), String::new()]);
        let mut out = anstream::StripStream::new(Vec::new());
        table.write(&mut out).unwrap();

        let text = String::from_utf8(out.into_inner()).unwrap();
        assert_eq!(text, "NAME    N\na       1\ngrößer  22\n漢字\n");
    }
}
