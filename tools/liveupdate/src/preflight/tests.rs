// SPDX-License-Identifier: MIT OR Apache-2.0

use super::{
    judge::*,
    machine::*,
    *, //
};
use crate::{
    image::{
        Compression,
        Formats,
        Kind,
        Source, //
    },
    listing::Listing,
    status::Support,
    SessionName,
    Token, //
};
use proptest::prelude::*;
use std::fs;

const OURS: &str = "kho kho-v4\nroot luo-v1\nroot luo-v5\nrecord luo-session-v2\n\
    record luo-flb-v1\nhandler memfd-extents-v3\nhandler memfd-small-v3\nhandler memfd-v2\n\
    default kho=on\n";

fn image(formats: &str) -> Image {
    Image {
        kind: Kind::BzImage,
        machine: Some("x86_64"),
        compression: Some(Compression::Gzip),
        release: Some("7.3.4".into()),
        boot_size: Some(64 << 20),
        formats: Formats::parse(formats),
        config: None,
    }
}

/// A stock kernel.
fn stock() -> Image {
    let mut stock = image("kho kho-v4\nroot luo-v5\nhandler memfd-v2\n");
    stock.formats.source = Source::Derived;
    stock
}

/// This machine, with a session of one file and others.
fn machine(format: &str, handlers: &[&str]) -> Machine {
    let mut text = format!("session 'vm-0' open, {} files\n", handlers.len());
    for (number, handler) in handlers.iter().enumerate() {
        text += &format!("  token {number:#x} handler '{handler}' preserved\n");
    }
    let directory = tempfile::tempdir().unwrap();
    let sessions = u8::from(!handlers.is_empty());
    for (name, text) in [
        ("enabled", "1".into()),
        ("state", "prepared".into()),
        ("number", "0".into()),
        ("abi", format!("outgoing {format}\nincoming none\n")),
        (
            "outgoing",
            format!("sessions {sessions}\nfiles 1\nsubsystems 0\n"),
        ),
        ("incoming", "sessions 0\nfiles 0\nsubsystems 0\n".into()),
        ("blackout_us", String::new()),
    ] {
        let text = match (name, sessions) {
            ("outgoing", 0) => "sessions 0\nfiles 0\nsubsystems 0\n".into(),
            _ => text,
        };
        fs::write(directory.path().join(name), text).unwrap();
    }
    Machine {
        machine: "x86_64".into(),
        support: Support::read_at(directory.path(), Path::new("/")).unwrap(),
        outgoing: Some(Listing::parse(&text)),
        incoming: Some(Listing::default()),
        formats: Some(Formats::parse(OURS)),
        memory_end: Some(4 << 30),
        scratch: vec![16 << 20, 256 << 20],
        auto_format: false,
        load_disabled: false,
    }
}

const GOOD: &str = "console=ttyS0 liveupdate=on";

fn codes(image: &Image, cmdline: &str, machine: &Machine) -> Vec<(Level, &'static str)> {
    let found = judge(image, None, &CommandLine::new(cmdline), machine, false);
    let of = |finding: &Finding| (finding.level, finding.problem.code());
    let found = found.iter().map(of);
    found.filter(|(_, code)| *code != "preserved").collect()
}

#[test]
fn ours_takes_ours() {
    let handlers = ["memfd-extents-v3", "memfd-small-v3"];
    assert_eq!(codes(&image(OURS), GOOD, &machine("fdt", &handlers)), []);
}

#[test]
fn stock_takes_what_is_written_for_it() {
    let with_kho = "liveupdate=on kho=on";
    let derived = (Level::Note, "derived");

    let v5 = machine("luo-v5", &["memfd-v2"]);
    assert_eq!(codes(&stock(), with_kho, &v5), [derived]);
    let fdt = machine("fdt", &["memfd-extents-v3"]);
    let found = codes(&stock(), with_kho, &fdt);
    assert_eq!(
        found,
        [derived, (Level::Error, "root"), (Level::Error, "handler")]
    );
    // With `auto` it will be written for it, too.
    let auto = Machine {
        auto_format: true,
        ..fdt
    };
    let found = codes(&stock(), with_kho, &auto);
    assert_eq!(found, [derived, (Level::Note, "format-changes")]);
    let back = Machine {
        auto_format: true,
        ..machine("luo-v5", &["memfd-v2"])
    };
    let found = codes(&image(OURS), GOOD, &back);
    assert_eq!(found, [(Level::Note, "format-changes")]);

    let empty = machine("fdt", &[]);
    let found = codes(&stock(), with_kho, &empty);
    assert_eq!(found, [derived, (Level::Warning, "root")]);
    assert!(codes(&stock(), GOOD, &v5).contains(&(Level::Warning, "kho-unknown")));
}

/// The release before knows the root, but not what stands in it.
#[test]
fn older_takes_what_both_know() {
    let older = |formats: &str| image(&formats.replace("-v3", "-v2"));
    let auto = Machine {
        auto_format: true,
        ..machine("fdt", &["memfd-extents-v3", "memfd-small-v3"])
    };
    let changes = [(Level::Note, "format-changes")];
    assert_eq!(codes(&older(OURS), GOOD, &auto), changes);
    let records = image(&OURS.replace("session-v2", "session-v1"));
    assert_eq!(codes(&records, GOOD, &auto), changes);
    // A kernel without a handler is no older one, and one without `luo-v5` gets ours.
    let without = image(&OURS.replace("handler memfd-small-v3\n", ""));
    assert_eq!(codes(&without, GOOD, &auto), [(Level::Error, "handler")]);
    let only_ours = older(&OURS.replace("root luo-v5\n", ""));
    assert_eq!(
        codes(&only_ours, GOOD, &auto),
        [(Level::Error, "handler"), (Level::Error, "handler")]
    );
    // What came in is preserved anew.
    let came = Machine {
        outgoing: Some(Listing::default()),
        incoming: auto.outgoing.clone(),
        ..machine("fdt", &["memfd-small-v2"])
    };
    assert_eq!(codes(&image(OURS), GOOD, &came), []);
    let tenth = Machine {
        formats: Some(Formats::parse(&format!("{OURS}handler memfd-small-v10\n"))),
        ..came
    };
    let newer = image(&format!("{OURS}handler memfd-small-v10\n"));
    assert_eq!(codes(&newer, GOOD, &tenth), []);
}

#[test]
fn more_is_going_to_be_preserved() {
    let cmdline = CommandLine::new("liveupdate=off");
    let found = judge(&image(OURS), None, &cmdline, &machine("fdt", &[]), true);

    assert_eq!(found[0].problem, Problem::LiveUpdateOff);
    assert_eq!(found[0].level, Level::Error);
}

#[test]
fn no_luo_at_all() {
    let found = codes(
        &image("kho kho-v4\n"),
        GOOD,
        &machine("fdt", &["memfd-extents-v3"]),
    );
    assert!(found.contains(&(Level::Error, "no-luo")));
    assert!(!found.iter().any(|(_, code)| *code == "handler"));
}

#[test]
fn handlers_of_modules() {
    let here = machine("fdt", &["vfio-v1"]);
    assert_eq!(
        codes(&image(OURS), GOOD, &here),
        [(Level::Warning, "handler")]
    );
    let mut built_in = here;
    built_in.formats = Some(Formats::parse(&format!("{OURS}handler vfio-v1\n")));
    assert_eq!(
        codes(&image(OURS), GOOD, &built_in),
        [(Level::Error, "handler")]
    );
}

#[test]
fn incoming_files_are_preserved_anew() {
    let mut back = machine("luo-v5", &[]);
    back.incoming = Some(Listing::parse(
        "session 'a' waiting, 1 files\n token 0x1 handler 'memfd-extents-v3' waiting\n\
         session 'b' finished, 1 files\n token 0x1 handler 'gone-v1' retrieved\n",
    ));
    assert_eq!(
        codes(&stock(), "liveupdate=on kho=on", &back),
        [(Level::Note, "derived")]
    );
}

#[test]
fn command_lines() {
    let here = machine("fdt", &["memfd-extents-v3"]);
    let image = image(OURS);
    let has = |cmdline: &str, code| {
        let found = codes(&image, cmdline, &here);
        found
            .iter()
            .find(|(_, found)| *found == code)
            .map(|(level, _)| *level)
    };

    assert_eq!(has("", "liveupdate-off"), Some(Level::Error));
    assert_eq!(has("liveupdate=off", "liveupdate-off"), Some(Level::Error));
    assert_eq!(
        has("-- liveupdate=on", "liveupdate-off"),
        Some(Level::Error)
    );
    assert_eq!(has("liveupdate=on kho=off", "kho-off"), Some(Level::Error));
    assert_eq!(
        has("liveupdate=on mem=1G", "memory-limit"),
        Some(Level::Error)
    );
    assert_eq!(has("liveupdate=on mem=4G", "memory-limit"), None);
    assert_eq!(
        has("liveupdate=on memmap=1M$1G", "memory-map"),
        Some(Level::Warning)
    );
    assert_eq!(has("liveupdate=on no5lvl", "four-levels"), None);
}

#[test]
fn room() {
    let here = machine("fdt", &[]);
    let judge = |size| {
        let initrd = Initrd {
            size,
            compression: None,
        };
        let cmdline = CommandLine::new(GOOD);
        let found = judge(&image(OURS), Some(initrd), &cmdline, &here, false);
        found.first().map(|finding| finding.problem.code())
    };

    assert_eq!(judge(1 << 20), None);
    assert_eq!(judge(200 << 20), Some("scratch-tight"));
    assert_eq!(judge(257 << 20), Some("scratch"));
}

#[test]
fn texts() {
    let iomem = "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n\
         100000000-17fffffff : System RAM\n  11a000000-11aefffff : Kernel code\n";
    assert_eq!(memory_end(iomem), Some(0x1_8000_0000));
    assert_eq!(memory_end("00000000-00000000 : System RAM\n"), None);
    assert_eq!(numbers("0x1000\n0x20\n"), [0x1000, 0x20]);
    assert_eq!(size("1G"), Some(1 << 30));
    assert_eq!(size("0x10k"), Some(16 << 10));
    assert_eq!(size("99999999999P"), None);
    assert_eq!(size("x"), None);
}

proptest! {
    #[test]
    fn one_line_each(name in proptest::collection::vec(1..=u8::MAX, 1..=63), text in "[ -~]*") {
        let problem = Problem::Handler {
            session: SessionName::new(name).unwrap(),
            token: Token(1),
            handlers: vec![text],
            module: false,
        };
        prop_assert!(!problem.to_string().contains(char::is_control));
    }

    #[test]
    fn nothing_panics(text in ".*") {
        size(&text);
        memory_end(&text);
        numbers(&text);
    }
}
