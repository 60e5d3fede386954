// SPDX-License-Identifier: GPL-2.0

//! State that survives a live update and belongs to no file, in Rust: a note.
//!
//! The note is `/sys/kernel/luo_note_rust/text`; how many live updates it has survived is `updates`
//! beside it. A [`Subsystem`] saves it in a page, whose address is handed over by the orchestrator.
//!
//! Writing 0 to 3 to `fail` names the event at which to fail, for tests; what happened so far is in
//! `events`, a letter each.
//!
//! `luo_note_c.c` is the same in C, with a notifier.

use core::fmt;

use kernel::{
    kho::{
        Preserved,
        Unclaimed, //
    },
    liveupdate::{
        Priority,
        Subsystem,
        SubsystemCell,
        SubsystemRegistration, //
    },
    prelude::*,
    sync::{
        static_mutex,
        StaticMutex, //
    },
    sysfs::{
        Attribute,
        Attributes,
        Directory, //
    }, //
};

module! {
    type: NoteModule,
    name: "luo_note_rust",
    authors: ["The LUO developers"],
    description: "Live update sample: state in Rust that survives",
    license: "GPL",
}

/// What the module owns: dropping it takes everything back, in this order.
struct NoteModule {
    _directory: Directory,
    _note: SubsystemRegistration<Note>,
    _content: Content,
}

/// Stands for what is in [`NOW`], which goes when this is dropped.
struct Content;

impl Drop for Content {
    fn drop(&mut self) {
        *NOW.lock() = Now::EMPTY;
    }
}

static NOTE: SubsystemCell<Note> = SubsystemCell::new();

static ATTRIBUTES: Attributes<4> = Attributes::new()
    .with::<Text>(0)
    .with::<Updates>(1)
    .with::<Fail>(2)
    .with::<Events>(3);

impl kernel::Module for NoteModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let content = Content;
        let note = NOTE.register()?;
        let directory = Directory::under_kernel(c"luo_note_rust")?;
        directory.add(&ATTRIBUTES)?;
        Ok(Self {
            _directory: directory,
            _note: note,
            _content: content,
        })
    }
}

/// How many bytes a note can have.
const MAX: usize = 4080;

/// What is handed over: `struct luo_note`.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct SavedNote {
    updates: u64,
    length: u64,
    text: [u8; MAX],
}

/// What there is now.
struct Now {
    updates: u64,
    text: KVec<u8>,
    events: KVec<u8>,
    fail: Option<u8>,
}

static NOW: StaticMutex<Now> = static_mutex!(Now::EMPTY, "luo_note_rust::NOW");

impl Now {
    const EMPTY: Self = Self {
        updates: 0,
        text: KVec::new(),
        events: KVec::new(),
        fail: None,
    };

    /// Notes an event, and fails at that which a test has named.
    fn tell(&mut self, event: u8, letter: u8) -> Result {
        self.events.push(letter, GFP_KERNEL)?;
        if self.fail == Some(event) {
            return Err(ENXIO);
        }
        Ok(())
    }

    fn save(&self, saved: &mut SavedNote) {
        saved.updates = self.updates;
        for (to, from) in saved.text.iter_mut().zip(&self.text) {
            *to = *from;
        }
        // Lossless: no kernel has wider sizes.
        saved.length = self.text.len() as u64;
    }
}

/// The subsystem.
struct Note;

#[vtable]
impl Subsystem for Note {
    const COMPATIBLE: &'static CStr = c"luo-note-v1";
    const PRIORITY: Priority = Priority::BeforeDevices;
    type Saved = Preserved<SavedNote>;

    fn prepare() -> Result<Self::Saved> {
        let mut now = NOW.lock();
        now.tell(0, b'p')?;

        let mut saved = Preserved::new()?;
        now.save(&mut saved);
        Ok(saved)
    }

    fn reboot(saved: &mut Self::Saved) -> Result {
        let mut now = NOW.lock();

        now.tell(1, b'r')?;
        now.save(saved);
        Ok(())
    }

    fn cancel(_saved: Self::Saved) {
        // That it cannot fail means that nobody hears of it.
        let _ = NOW.lock().tell(3, b'c');
    }

    fn restore(incoming: Unclaimed<SavedNote>) -> Result {
        let saved = incoming.claim()?;
        // Whatever the previous kernel left, it is not to be trusted.
        let length = usize::try_from(saved.length)?;
        let text = saved.text.get(..length).ok_or(EINVAL)?;

        let mut now = NOW.lock();
        now.text.clear();
        now.text.extend_from_slice(text, GFP_KERNEL)?;
        now.updates = saved.updates.saturating_add(1);
        Ok(())
    }

    fn finish() {
        // That it cannot fail means that nobody hears of it.
        let _ = NOW.lock().tell(2, b'f');
    }
}

fn write_bytes(to: &mut dyn fmt::Write, bytes: &[u8]) -> Result {
    for byte in bytes {
        to.write_char(char::from(*byte))?;
    }
    Ok(())
}

/// The note: ASCII, as it is written out as characters.
struct Text;

#[vtable]
impl Attribute for Text {
    const NAME: &'static CStr = c"text";

    fn show(to: &mut dyn fmt::Write) -> Result {
        write_bytes(to, &NOW.lock().text)
    }

    fn store(text: &[u8]) -> Result {
        if text.len() > MAX || !text.is_ascii() {
            return Err(EINVAL);
        }
        let mut now = NOW.lock();

        now.text.clear();
        Ok(now.text.extend_from_slice(text, GFP_KERNEL)?)
    }
}

/// How many live updates it has survived.
struct Updates;

#[vtable]
impl Attribute for Updates {
    const NAME: &'static CStr = c"updates";

    fn show(to: &mut dyn fmt::Write) -> Result {
        Ok(writeln!(to, "{}", NOW.lock().updates)?)
    }
}

/// The event at which to fail.
struct Fail;

#[vtable]
impl Attribute for Fail {
    const NAME: &'static CStr = c"fail";

    fn store(text: &[u8]) -> Result {
        NOW.lock().fail = match text.trim_ascii() {
            [digit @ b'0'..=b'3'] => Some(digit - b'0'),
            b"-1" => None,
            _ => return Err(EINVAL),
        };
        Ok(())
    }
}

/// What happened so far.
struct Events;

#[vtable]
impl Attribute for Events {
    const NAME: &'static CStr = c"events";

    fn show(to: &mut dyn fmt::Write) -> Result {
        write_bytes(to, &NOW.lock().events)?;
        Ok(writeln!(to)?)
    }
}
