// SPDX-License-Identifier: MIT OR Apache-2.0

//! Kernel command lines, read as the kernel reads them.

use crate::error::{
    Context,
    Result, //
};
use std::{
    fmt,
    fs, //
};

/// A kernel's command line.
///
/// Parameters are separated by white space, except within double quotes. Dashes and underscores in
/// names are the same. What follows `--` is for the first process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine(String);

/// A parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter<'a> {
    /// Its name.
    pub name: &'a str,
    /// What follows the equals sign, if there is one, without quotes around it.
    pub value: Option<&'a str>,
}

impl CommandLine {
    /// Reads that of the running kernel.
    ///
    /// # Errors
    ///
    /// What reading `/proc/cmdline` returns.
    pub fn read() -> Result<Self> {
        let path = "/proc/cmdline";
        let bytes = fs::read(path).context(|| format!("read {path}"))?;

        Ok(Self::new(String::from_utf8_lossy(&bytes).trim_end()))
    }

    /// Takes a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parameters for the kernel, in their order.
    pub fn parameters(&self) -> impl Iterator<Item = Parameter<'_>> {
        words(&self.0)
            .take_while(|word| *word != "--")
            .map(Parameter::parse)
    }

    /// The value of the last `name=value`, which is the one that counts for most parameters.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters()
            .filter(|parameter| parameter.is(name))
            .filter_map(|parameter| parameter.value)
            .last()
    }

    /// Whether a name is there, with a value or without.
    pub fn has(&self, name: &str) -> bool {
        self.parameters().any(|parameter| parameter.is(name))
    }

    /// The last setting of a switch (`name=on`), as the kernel reads it; [`None`] if it is not there
    /// or is no boolean. A name without a value counts as on.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.parameters()
            .filter(|parameter| parameter.is(name))
            .last()
            .and_then(|parameter| parse_flag(parameter.value.unwrap_or("1")))
    }

    /// Sets `name=value` in place of what was there.
    pub fn set(&mut self, name: &str, value: &str) {
        let (kernel, init) = self.split_init();
        let mut kept: Vec<&str> = kernel
            .filter(|word| {
                let parameter = Parameter::parse(word);
                parameter.value.is_none() || !parameter.is(name)
            })
            .collect();
        let quoted = if value.contains(char::is_whitespace) {
            format!("{name}=\"{value}\"")
        } else {
            format!("{name}={value}")
        };

        kept.push(&quoted);
        kept.extend(init);
        self.0 = kept.join(" ");
    }

    /// Adds parameters behind those for the kernel.
    pub fn append(&mut self, text: &str) {
        let (kernel, init) = self.split_init();
        let mut words: Vec<&str> = kernel.collect();

        words.extend(self::words(text));
        words.extend(init);
        self.0 = words.join(" ");
    }

    /// The words for the kernel, and the rest.
    fn split_init(&self) -> (impl Iterator<Item = &str>, Vec<&str>) {
        let words: Vec<&str> = words(&self.0).collect();
        let end = words.iter().position(|word| *word == "--");
        let rest = words[end.unwrap_or(words.len())..].to_vec();
        let kernel = end.unwrap_or(words.len());

        (words.into_iter().take(kernel), rest)
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'a> Parameter<'a> {
    fn parse(word: &'a str) -> Self {
        let bare = match word.strip_prefix('"') {
            Some(inner) => inner.strip_suffix('"').unwrap_or(inner),
            None => word,
        };
        let (name, value) = match bare.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (bare, None),
        };
        let value = value.map(|value| match value.strip_prefix('"') {
            Some(inner) => inner.strip_suffix('"').unwrap_or(inner),
            None => value,
        });

        Self { name, value }
    }

    /// Whether it has this name; dashes and underscores are the same.
    pub fn is(&self, name: &str) -> bool {
        let same = |byte: u8| if byte == b'-' { b'_' } else { byte };

        self.name.bytes().map(same).eq(name.bytes().map(same))
    }
}

/// Words, separated by white space outside of double quotes.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text.trim_start();

    std::iter::from_fn(move || {
        let mut quoted = false;
        let end = rest.find(|char: char| {
            quoted ^= char == '"';
            char.is_ascii_whitespace() && !quoted
        });
        let (word, tail) = rest.split_at(end.unwrap_or(rest.len()));
        rest = tail.trim_start();
        (!word.is_empty()).then_some(word)
    })
}

/// A boolean as the kernel's `kstrtobool()` reads it.
fn parse_flag(text: &str) -> Option<bool> {
    let mut chars = text.chars().map(|char| char.to_ascii_lowercase());

    match chars.next()? {
        'y' | '1' | 't' => Some(true),
        'n' | '0' | 'f' => Some(false),
        'o' => match chars.next()? {
            'n' => Some(true),
            'f' => Some(false),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values() {
        let mut line = CommandLine::new("quiet a=1 luo.stage=1 b a=2");

        assert_eq!(line.get("a"), Some("2"));
        assert_eq!(line.get("b"), None);
        assert!(line.has("b") && !line.has("c"));
        line.set("luo.stage", "2");
        assert_eq!(line.as_str(), "quiet a=1 b a=2 luo.stage=2");
        line.set("a", "3");
        assert_eq!(line.as_str(), "quiet b luo.stage=2 a=3");
    }

    #[test]
    fn quotes() {
        let line = CommandLine::new(r#" x="a b" "y=c d" dyndbg="file a.c +p; x" z"#);

        assert_eq!(line.get("x"), Some("a b"));
        assert_eq!(line.get("y"), Some("c d"));
        assert_eq!(line.parameters().count(), 4);
        let mut line = line;
        line.set("x", "e f");
        assert_eq!(line.get("x"), Some("e f"));
    }

    #[test]
    fn what_is_for_the_first_process() {
        let mut line = CommandLine::new("a=1 -- a=2 liveupdate=on");

        assert_eq!(line.get("a"), Some("1"));
        assert_eq!(line.flag("liveupdate"), None);
        line.append("kho=on");
        assert_eq!(line.as_str(), "a=1 kho=on -- a=2 liveupdate=on");
        line.set("a", "3");
        assert_eq!(line.as_str(), "kho=on a=3 -- a=2 liveupdate=on");
    }

    #[test]
    fn flags() {
        let flag = |text: &str| CommandLine::new(text).flag("kho");

        assert_eq!(flag("kho=on"), Some(true));
        assert_eq!(flag("kho=Yes kho=off"), Some(false));
        assert_eq!(flag("kho"), Some(true));
        assert_eq!(flag("kho="), None);
        assert_eq!(flag("kho=maybe"), None);
        assert_eq!(flag("khox=on"), None);
        let line = CommandLine::new("log-buf-len=1M");
        assert_eq!(line.get("log_buf_len"), Some("1M"));
    }

    proptest! {
        #[test]
        fn what_is_set_is_there(text in r#"[a-c="\- ]*"#, value in "[a-z0-9 ]*") {
            let mut line = CommandLine::new(text.replace('"', ""));
            line.set("name", &value);
            prop_assert_eq!(line.get("name"), Some(value.as_str()));
        }

        #[test]
        fn nothing_panics(text in ".*") {
            let line = CommandLine::new(text);
            line.parameters().for_each(drop);
            line.flag("a");
        }
    }
}
