// SPDX-License-Identifier: GPL-2.0

//! A driver that does what tests tell it, and tells what LUO did with it.
//!
//! `/dev/luo-test` makes toys: files that are a kind and a key. There are two handlers for toys,
//! and three FLBs on which both depend. Every callback is written down, to be read from the device;
//! any can be told to fail, or to wait at a gate until a test has done what it wants to do
//! meanwhile. See `selftests/src/tests/driver/` for the other side.

use kernel::{
    anon_inode::{
        self,
        AnonFile, //
    },
    fs::{
        file::{
            flags,
            FileDescriptorReservation, //
        },
        File,
        Kiocb, //
    },
    ioctl::_IO,
    iov::IovIterDest,
    liveupdate::{
        AnyFlb,
        FileHandler,
        Flb,
        FlbCell,
        FlbRef,
        HandlerCell,
        Outcome,
        Registration,
        RetrieveError, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    new_mutex,
    prelude::*,
    str::CString,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

module! {
    type: TestModule,
    name: "luo_test_driver",
    authors: ["The LUO developers"],
    description: "Live update: a driver for tests",
    license: "GPL",
    params: {
        swapped: bool {
            default: false,
            description: "Register the second handler before the first",
        },
    },
}

#[pin_data]
struct TestModule {
    #[pin]
    _device: MiscDeviceRegistration<Device>,
    _one: OneOf,
    _other: OneOf,
}

/// A registration of either handler.
enum OneOf {
    First {
        _registration: Registration<Toys<1>>,
    },
    Second {
        _registration: Registration<Toys<2>>,
    },
}

impl OneOf {
    fn register(first: bool) -> Result<Self> {
        Ok(match first {
            true => Self::First {
                _registration: FIRST.register()?,
            },
            false => Self::Second {
                _registration: SECOND.register()?,
            },
        })
    }
}

static FIRST: HandlerCell<Toys<1>> = HandlerCell::new();
static SECOND: HandlerCell<Toys<2>> = HandlerCell::new();
static SHARED_1: FlbCell<Shared<1>> = FlbCell::new();
static SHARED_2: FlbCell<Shared<2>> = FlbCell::new();
static SHARED_3: FlbCell<Shared<3>> = FlbCell::new();

impl kernel::InPlaceModule for TestModule {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let swapped = module_parameters::swapped.value();

        try_pin_init!(Self {
            _one: OneOf::register(!swapped)?,
            _other: OneOf::register(swapped)?,
            _device <- MiscDeviceRegistration::register(MiscDeviceOptions {
                name: c"luo-test",
            }),
        })
    }
}

/// What can happen, and what can be told to fail.
#[derive(Copy, Clone)]
#[repr(u8)]
enum Event {
    Preserve,
    Freeze,
    Unfreeze,
    Unpreserve,
    Retrieve,
    /// The same, but it may be tried again.
    RetrieveAgain,
    CanFinish,
    FinishNeverAsked,
    FinishRetrieved,
    FinishFailed,
    FlbPreserve,
    FlbUnpreserve,
    FlbRetrieve,
    FlbFinish,
}

const EVENTS: [(Event, &str); 14] = [
    (Event::Preserve, "preserve"),
    (Event::Freeze, "freeze"),
    (Event::Unfreeze, "unfreeze"),
    (Event::Unpreserve, "unpreserve"),
    (Event::Retrieve, "retrieve"),
    (Event::RetrieveAgain, "retrieve-again"),
    (Event::CanFinish, "can-finish"),
    (Event::FinishNeverAsked, "finish-never-asked"),
    (Event::FinishRetrieved, "finish-retrieved"),
    (Event::FinishFailed, "finish-failed"),
    (Event::FlbPreserve, "preserve"),
    (Event::FlbUnpreserve, "unpreserve"),
    (Event::FlbRetrieve, "retrieve"),
    (Event::FlbFinish, "finish"),
];

/// What happened: who, what, and to which key. The oldest are forgotten.
static LOG: [Atomic<u64>; 4096] = [const { Atomic::new(0) }; 4096];
static LOGGED: Atomic<usize> = Atomic::new(0);

fn log(who: u8, event: Event, key: u32) {
    let at = LOGGED.fetch_add(1, Relaxed);

    if let Some(entry) = LOG.get(at % LOG.len()) {
        entry.store(
            u64::from(who) << 40 | u64::from(event as u8) << 32 | u64::from(key),
            Relaxed,
        );
    }
}

/// Writes all that happened as text, and forgets it.
fn take_log() -> Result<KVec<u8>> {
    let mut text = KVec::new();
    let count = LOGGED.xchg(0, Relaxed);

    for entry in LOG.iter().take(count) {
        let [key @ .., event, who, _, _] = entry.load(Relaxed).to_le_bytes();
        let (event, name) = *EVENTS.get(usize::from(event)).ok_or(EINVAL)?;
        let key = u32::from_le_bytes(key);
        let line = match event {
            Event::FlbPreserve | Event::FlbUnpreserve | Event::FlbRetrieve | Event::FlbFinish => {
                CString::try_from_fmt(fmt!("flb-{who} {name}\n"))?
            }
            _ => CString::try_from_fmt(fmt!("handler-{who} {name} {key}\n"))?,
        };
        text.extend_from_slice(line.to_bytes(), GFP_KERNEL)?;
    }
    Ok(text)
}

/// Which call from now on fails, and by which error; zero for none.
static FAULTS: [Atomic<u32>; EVENTS.len()] = [const { Atomic::new(0) }; EVENTS.len()];

/// Has the `count`th call from now on fail; with 0, none.
fn set_fault(event: usize, count: u16, errno: u16) -> Result {
    FAULTS
        .get(event)
        .ok_or(EINVAL)?
        .store(u32::from(count) << 16 | u32::from(errno), Relaxed);
    Ok(())
}

/// There is no gate, or it is open.
const OPEN: u32 = 0;
/// Somebody waits at the gate.
const WAITING: u32 = 1;
/// The next event of a kind will wait: this, and its number.
const CLOSED: u32 = 2;
/// The gate.
static GATE: Atomic<u32> = Atomic::new(OPEN);
/// How many milliseconds the gate holds an event up at most. No test fails by hanging the machine.
const PATIENCE: u32 = 20_000;

/// Waits while the gate is closed for such an event.
fn pass_gate(event: Event) {
    if GATE
        .cmpxchg(CLOSED + u32::from(event as u8), WAITING, Full)
        .is_err()
    {
        return;
    }
    for _ in 0..PATIENCE {
        if GATE.load(Relaxed) != WAITING {
            return;
        }
        fsleep(Delta::from_millis(1));
    }
    // For nothing if it has just been opened.
    let _ = GATE.cmpxchg(WAITING, OPEN, Full);
}

/// Writes an event down, waits at the gate, and fails if it was told to.
fn happens(who: u8, event: Event, key: u32) -> Result {
    log(who, event, key);
    pass_gate(event);

    let Some(fault) = FAULTS.get(usize::from(event as u8)) else {
        return Ok(());
    };
    let left = fault.load(Relaxed);
    if left >> 16 == 0 {
        return Ok(());
    }
    fault.store(left - (1 << 16), Relaxed);
    if left >> 16 > 1 {
        return Ok(());
    }
    let [low, high, ..] = left.to_le_bytes();
    Err(Error::from_errno(-i32::from(u16::from_le_bytes([
        low, high,
    ]))))
}

/// A file for tests. Kind 0 suits both handlers, kind 1 the first, and kind 2 the second.
struct Toy {
    kind: u8,
    key: u32,
}

impl Toy {
    fn file(self) -> Result<ARef<File>> {
        anon_inode::new_file::<Self>(c"[luo_test]", KBox::new(self, GFP_KERNEL)?)
    }

    fn to_bits(&self) -> u64 {
        u64::from(self.kind) << 32 | u64::from(self.key)
    }

    fn from_bits(bits: u64) -> Result<Self> {
        let [key @ .., kind, _, _, _] = bits.to_le_bytes();

        Ok(Self {
            kind,
            key: u32::from_le_bytes(key),
        })
    }
}

const GET_KEY: u32 = _IO(0xBC, 0x10);

#[vtable]
impl AnonFile for Toy {
    type Ptr = KBox<Self>;

    fn ioctl(toy: &Self, cmd: u32, _arg: usize) -> Result<isize> {
        match cmd {
            GET_KEY => Ok(isize::try_from(toy.key)?),
            _ => Err(ENOTTY),
        }
    }
}

/// The handlers for toys. Two toys with the same key count as the same file.
struct Toys<const N: u8>;

fn toy(file: &File) -> Result<&Toy> {
    anon_inode::data_of::<Toy>(file).ok_or(EINVAL)
}

#[vtable]
impl<const N: u8> FileHandler for Toys<N> {
    const COMPATIBLE: &'static CStr = match N {
        1 => c"luo-test-first-v1",
        _ => c"luo-test-second-v1",
    };
    type Handle = u64;
    type State = ();

    fn flbs() -> &'static [&'static dyn AnyFlb] {
        static FLBS: [&dyn AnyFlb; 3] = [&SHARED_1, &SHARED_2, &SHARED_3];
        &FLBS
    }

    fn can_preserve(file: &File) -> bool {
        toy(file).is_ok_and(|toy| toy.kind == 0 || toy.kind == N)
    }

    fn id(file: &File) -> usize {
        // Odd, so that it is the address of nothing.
        toy(file).map_or(0, |toy| toy.key as usize * 2 + 1)
    }

    fn preserve(file: &File) -> Result<(u64, ())> {
        let toy = toy(file)?;

        happens(N, Event::Preserve, toy.key)?;
        Ok((toy.to_bits(), ()))
    }

    fn freeze(file: &File, _state: &mut (), _toy: &mut u64) -> Result {
        happens(N, Event::Freeze, toy(file)?.key)
    }

    fn unfreeze(file: &File, _state: &mut (), _toy: &mut u64) {
        log(N, Event::Unfreeze, toy(file).map_or(0, |toy| toy.key));
    }

    fn unpreserve(file: &File, _state: (), _toy: u64) {
        log(N, Event::Unpreserve, toy(file).map_or(0, |toy| toy.key));
    }

    fn retrieve(bits: u64) -> Result<ARef<File>, RetrieveError<u64>> {
        let toy = Toy::from_bits(bits)?;

        happens(N, Event::RetrieveAgain, toy.key).map_err(|e| RetrieveError::Again(e, bits))?;
        happens(N, Event::Retrieve, toy.key)?;
        Ok(toy.file()?)
    }

    fn can_finish(_outcome: Outcome<'_, ()>) -> bool {
        happens(N, Event::CanFinish, 0).is_ok()
    }

    fn finish(outcome: Outcome<'_, u64>) {
        let (event, key) = match outcome {
            Outcome::NotRetrieved(bits) => (
                Event::FinishNeverAsked,
                Toy::from_bits(bits).map_or(0, |toy| toy.key),
            ),
            Outcome::Retrieved(file) => {
                (Event::FinishRetrieved, toy(file).map_or(0, |toy| toy.key))
            }
            Outcome::Failed { left, .. } => (
                Event::FinishFailed,
                left.and_then(|bits| Toy::from_bits(bits).ok())
                    .map_or(0, |toy| toy.key),
            ),
        };
        log(N, event, key);
    }
}

/// State that all toys share: a number.
struct Shared<const N: u8>;

#[vtable]
impl<const N: u8> Flb for Shared<N> {
    const COMPATIBLE: &'static CStr = match N {
        1 => c"luo-test-shared-1",
        2 => c"luo-test-shared-2",
        _ => c"luo-test-shared-3",
    };
    type Handle = u64;
    type Outgoing = u64;
    type Incoming = u64;

    fn preserve() -> Result<(u64, u64)> {
        happens(N, Event::FlbPreserve, 0)?;
        Ok((u64::from(N) * 100, u64::from(N)))
    }

    fn unpreserve(_own: u64, _handle: u64) {
        log(N, Event::FlbUnpreserve, 0);
    }

    fn retrieve(handle: u64) -> Result<u64> {
        happens(N, Event::FlbRetrieve, 0)?;
        Ok(handle)
    }

    fn finish(_object: u64) {
        log(N, Event::FlbFinish, 0);
    }
}

/// `/dev/luo-test`. While it is open, it keeps the shared state that was fetched by it.
#[pin_data]
struct Device {
    #[pin]
    fetched: Mutex<KVec<FlbRef<u64>>>,
}

/// Makes a toy: kind, and key from bit 8 on.
const CREATE: u32 = _IO(0xBC, 0x00);
/// Has an event fail: its number, the error from bit 8 on, and which call from bit 24 on.
const FAIL: u32 = _IO(0xBC, 0x01);
/// Fetches shared state and returns it: 1 to 3, for the incoming one; 11 to 13, for the outgoing.
const FETCH: u32 = _IO(0xBC, 0x02);
/// Closes the gate for the next event of a kind: its number.
const CLOSE_GATE: u32 = _IO(0xBC, 0x03);
/// Opens the gate. Returns whether somebody waited.
const OPEN_GATE: u32 = _IO(0xBC, 0x04);
/// Returns whether somebody waits at the gate.
const WAITS: u32 = _IO(0xBC, 0x05);

#[vtable]
impl MiscDevice for Device {
    type Ptr = Pin<KBox<Self>>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        KBox::pin_init(
            pin_init!(Self {
                fetched <- new_mutex!(KVec::new()),
            }),
            GFP_KERNEL,
        )
    }

    fn read_iter(mut kiocb: Kiocb<'_, Self::Ptr>, to: &mut IovIterDest<'_>) -> Result<usize> {
        let text = take_log()?;
        if text.len() > to.len() {
            return Err(EMSGSIZE);
        }
        *kiocb.ki_pos_mut() = 0;
        to.simple_read_from_buffer(kiocb.ki_pos_mut(), &text)
    }

    fn ioctl(device: Pin<&Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let [low, b, c, d, ..] = arg.to_le_bytes();

        match cmd {
            CREATE => {
                let fd = FileDescriptorReservation::get_unused_fd_flags(flags::O_CLOEXEC)?;
                let number = fd.reserved_fd();
                let toy = Toy {
                    kind: low,
                    key: u32::try_from(arg >> 8)?,
                };
                fd.fd_install(toy.file()?);
                Ok(isize::try_from(number)?)
            }
            FAIL => {
                set_fault(low.into(), d.into(), u16::from_le_bytes([b, c]))?;
                Ok(0)
            }
            FETCH => {
                let object = match arg {
                    1 => SHARED_1.incoming(),
                    2 => SHARED_2.incoming(),
                    3 => SHARED_3.incoming(),
                    11 => SHARED_1.outgoing(),
                    12 => SHARED_2.outgoing(),
                    13 => SHARED_3.outgoing(),
                    _ => Err(EINVAL),
                }?;
                let value = isize::try_from(*object)?;
                device.fetched.lock().push(object, GFP_KERNEL)?;
                Ok(value)
            }
            CLOSE_GATE => {
                EVENTS.get(usize::from(low)).ok_or(EINVAL)?;
                GATE.store(CLOSED + u32::from(low), Relaxed);
                Ok(0)
            }
            OPEN_GATE => Ok((GATE.xchg(OPEN, Full) == WAITING).into()),
            WAITS => Ok((GATE.load(Relaxed) == WAITING).into()),
            _ => Err(ENOTTY),
        }
    }
}
