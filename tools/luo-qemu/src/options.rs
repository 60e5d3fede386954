// SPDX-License-Identifier: GPL-2.0

//! A command line of QEMU, taken apart.
//!
//! QEMU has options with and without an argument, and arguments of the form `key=value,...` or, of
//! some options, JSON. Which options have none is in a table; of an option that is in no table the
//! next word is the argument unless it begins with a dash.

use serde_json::Value;

/// Options without an argument.
const FLAGS: &[&str] = &[
    "h",
    "help",
    "version",
    "S",
    "s",
    "enable-kvm",
    "no-reboot",
    "no-shutdown",
    "nographic",
    "snapshot",
    "daemonize",
    "no-user-config",
    "nodefaults",
    "only-migratable",
    "preconfig",
    "full-screen",
    "win2k-hack",
    "no-acpi",
    "no-hpet",
    "no-fd-bootchk",
    "mem-prealloc",
    "xen-attach",
    "xen-domid-restrict",
    "singlestep",
    "old-param",
    "semihosting",
    "enable-fips",
    "no-quit",
    "portrait",
    "usb",
    "no-kvm",
];

/// Options whose argument may begin with a dash.
const ALWAYS: &[&str] = &[
    "append", "name", "m", "machine", "M", "device", "object", "netdev", "nic", "net", "drive",
    "blockdev", "chardev", "cpu", "incoming", "numa",
];

/// One option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opt {
    /// Without its dashes; empty for a disk image that stands alone.
    pub name: String,
    /// Its argument; empty if it has none.
    pub argument: String,
}

impl Opt {
    /// As it was written, for people.
    pub fn text(&self) -> String {
        match (self.name.as_str(), self.argument.as_str()) {
            ("", image) => image.to_owned(),
            (name, "") => format!("-{name}"),
            (name, argument) => format!("-{name} {argument}"),
        }
    }

    /// The keys and values of its argument. The value of the first may stand without its key, which then is
    /// empty; other keys without a value are `on`.
    pub fn pairs(&self) -> Vec<(String, String)> {
        if self.argument.trim_start().starts_with('{') {
            let Ok(Value::Object(object)) = serde_json::from_str(&self.argument) else {
                return Vec::new();
            };
            let mut pairs = Vec::new();
            flatten("", &Value::Object(object), &mut pairs);
            return pairs;
        }
        split(&self.argument)
            .into_iter()
            .enumerate()
            .map(|(number, part)| match part.split_once('=') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None if number == 0 => (String::new(), part),
                None => (part, "on".to_owned()),
            })
            .collect()
    }

    /// What it is about: the value of one of these keys, or the value without a key.
    pub fn kind(&self, keys: &[&str]) -> String {
        let is_it = |key: &String| key.is_empty() || keys.contains(&key.as_str());
        let found = self.pairs().into_iter().find(|(key, _)| is_it(key));
        found.map(|(_, value)| value).unwrap_or_default()
    }

    /// The last value of a key.
    pub fn value(&self, key: &str) -> Option<String> {
        let found = self.pairs().into_iter().rev().find(|(name, _)| name == key);
        found.map(|(_, value)| value)
    }

    /// Whether a key is there, and not off.
    pub fn is_on(&self, key: &str) -> bool {
        let value = self.value(key);
        value.is_some_and(|value| !matches!(value.as_str(), "off" | "no" | "false" | "n"))
    }
}

/// The parts between commas; two commas stand for one that belongs to a value.
fn split(argument: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = argument.chars().peekable();
    while let Some(char) = chars.next() {
        let last = parts.len() - 1;
        if char != ',' {
            parts[last].push(char);
        } else if chars.next_if_eq(&',').is_some() {
            parts[last].push(',');
        } else {
            parts.push(String::new());
        }
    }
    parts
}

/// Nested objects as `outer.inner`.
fn flatten(prefix: &str, value: &Value, pairs: &mut Vec<(String, String)>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let name = if prefix.is_empty() {
                    key.clone()
                } else {
                    format!("{prefix}.{key}")
                };
                flatten(&name, value, pairs);
            }
        }
        Value::Bool(is_on) => {
            pairs.push((
                prefix.to_owned(),
                if *is_on { "on" } else { "off" }.to_owned(),
            ));
        }
        Value::String(text) => pairs.push((prefix.to_owned(), text.clone())),
        other => pairs.push((prefix.to_owned(), other.to_string())),
    }
}

/// Takes the arguments apart, without the program.
pub fn parse(arguments: &[String]) -> Vec<Opt> {
    let mut options = Vec::new();
    let mut words = arguments.iter().peekable();

    while let Some(word) = words.next() {
        let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            options.push(Opt {
                name: String::new(),
                argument: word.clone(),
            });
            continue;
        };
        let argument = if FLAGS.contains(&name) {
            None
        } else {
            words.next_if(|next| ALWAYS.contains(&name) || !next.starts_with('-'))
        };
        options.push(Opt {
            name: name.to_owned(),
            argument: argument.cloned().unwrap_or_default(),
        });
    }
    options
}

/// A size as QEMU reads it: a number, and a unit; without one it is MiB.
pub fn size(text: &str) -> Option<u64> {
    let end = text
        .find(|char: char| !char.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit {
        "" | "M" | "m" | "MB" | "MiB" => 20,
        "K" | "k" | "KB" | "KiB" => 10,
        "G" | "g" | "GB" | "GiB" => 30,
        "T" | "t" | "TB" | "TiB" => 40,
        "B" | "b" => 0,
        _ => return None,
    };
    let bytes = number.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    (bytes > 0 && bytes % 4096 == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Vec<Opt> {
        parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn words() {
        let found = options("-S disk.img --m 1G -append -quiet -nographic -unknown -device a,b=c");
        let texts: Vec<_> = found.iter().map(Opt::text).collect();
        assert_eq!(
            texts,
            [
                "-S",
                "disk.img",
                "-m 1G",
                "-append -quiet",
                "-nographic",
                "-unknown",
                "-device a,b=c"
            ]
        );
    }

    #[test]
    fn arguments() {
        let opt = &options("-device virtio-blk-pci,drive=a,,b,share,serial=x=y")[0];
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            opt.pairs(),
            [
                pair("", "virtio-blk-pci"),
                pair("drive", "a,b"),
                pair("share", "on"),
                pair("serial", "x=y")
            ]
        );
        assert_eq!(opt.kind(&["driver"]), "virtio-blk-pci");
        assert!(opt.is_on("share") && !opt.is_on("other"));
        assert_eq!(options("-device bus=x,driver=y")[0].kind(&["driver"]), "y");
    }

    #[test]
    fn json() {
        let opt = &options(r#"-blockdev {"driver":"file","cache":{"direct":true},"n":7}"#)[0];
        assert_eq!(opt.kind(&["driver"]), "file");
        assert_eq!(opt.value("cache.direct").as_deref(), Some("on"));
        assert_eq!(opt.value("n").as_deref(), Some("7"));
        assert!(options("-device {broken")[0].pairs().is_empty());
    }

    #[test]
    fn sizes() {
        assert_eq!(size("256"), Some(256 << 20));
        assert_eq!(size("256M"), Some(256 << 20));
        assert_eq!(size("1GiB"), Some(1 << 30));
        assert_eq!(size("4096b"), Some(4096));
        for bad in ["", "0", "M", "1X", "1b", "-1", "99999999999T", "1.5G"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }
}
