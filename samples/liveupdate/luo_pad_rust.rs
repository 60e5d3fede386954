// SPDX-License-Identifier: GPL-2.0

//! A driver whose files survive a live update, in Rust.
//!
//! `/dev/luo-pad` makes pads (`LUO_PAD_CREATE`). A pad is a file with a text: a write replaces it,
//! a read gives it. Each pad has a number that no other pad ever has, before a live update or after
//! it.
//!
//! So there are two things to hand over, and they show the two parts of the driver API:
//!
//! - a pad, by a [`FileHandler`]: [`Pads`];
//! - the last number, which all pads share, by an [`Flb`]: [`Numbers`].
//!
//! `luo_pad_c.c` is the same driver in C. They hand over the same, described in `luo_pad.h`, so
//! that either may follow the other.

use kernel::{
    anon_inode::{
        self,
        AnonFile, //
    },
    fs::{
        file::FileDescriptorReservation,
        File, //
    },
    ioctl::{
        _IO,
        _IOC_SIZE,
        _IOR, //
    },
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    kho::{
        Address,
        Preserved,
        Unclaimed, //
    },
    liveupdate::{
        AnyFlb,
        FileHandler,
        Flb,
        FlbCell,
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
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow,
        Mutex, //
    },
    uaccess::UserSlice, //
};

const CREATE: u32 = _IO(0xBB, 0x00);
const GET_NUMBER: u32 = _IOR::<u64>(0xBB, 0x01);

module! {
    type: PadModule,
    name: "luo_pad_rust",
    authors: ["The LUO developers"],
    description: "Live update sample: a driver in Rust whose files survive",
    license: "GPL",
}

/// What the module owns: dropping it takes everything back.
#[pin_data]
struct PadModule {
    #[pin]
    _device: MiscDeviceRegistration<PadDevice>,
    _pads: Registration<Pads>,
}

static PADS: HandlerCell<Pads> = HandlerCell::new();
static NUMBERS: FlbCell<Numbers> = FlbCell::new();

impl kernel::InPlaceModule for PadModule {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _pads: PADS.register()?,
            _: {
                // The numbers go on where the previous kernel stopped, if there are pads of it.
                match NUMBERS.incoming() {
                    Ok(last) => raise(&LAST, *last),
                    Err(ENOENT | ENODATA) => {}
                    Err(e) => pr_warn!("numbers of the previous kernel are lost: {:?}\n", e),
                }
            },
            // Pads can be made once their numbers are right.
            _device <- MiscDeviceRegistration::register(MiscDeviceOptions {
                name: c"luo-pad",
            }),
        })
    }
}

/// The last number given to a pad.
static LAST: Atomic<u64> = Atomic::new(0);

/// Makes a number at least as large as another, and says how large it is then.
fn raise(number: &Atomic<u64>, least: u64) {
    let mut seen = number.load(Relaxed);

    while seen < least {
        match number.cmpxchg(seen, least, Relaxed) {
            Ok(_) => return,
            Err(now) => seen = now,
        }
    }
}

/// Takes a number for a new pad.
fn next_number() -> u64 {
    let number = LAST.fetch_add(1, Relaxed).wrapping_add(1);

    // If some pad is preserved, the next kernel is to know.
    if let Ok(numbers) = NUMBERS.outgoing() {
        let mut saved = numbers.lock();
        saved.last = saved.last.max(number);
    }
    number
}

/// A pad.
#[pin_data]
struct Pad {
    number: u64,
    /// Locked by `freeze`, and so never while user memory is accessed: that may fault, and a fault
    /// may wait for whatever it likes.
    #[pin]
    content: Mutex<Content>,
}

/// What is on a pad.
struct Content {
    text: KVec<u8>,
    /// Whether the text was saved for the next kernel for the last time.
    frozen: bool,
}

/// What is handed over for a pad: `struct luo_pad_saved`.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct SavedPad {
    number: u64,
    length: u64,
    text: [u8; Pad::MAX],
}

impl Pad {
    /// How many bytes a pad can hold.
    const MAX: usize = 4080;

    /// Makes the file of a pad.
    fn file(number: u64, text: KVec<u8>) -> Result<ARef<File>> {
        let pad = Arc::pin_init(
            pin_init!(Self {
                number,
                content <- new_mutex!(Content {
                    text,
                    frozen: false,
                }),
            }),
            GFP_KERNEL,
        )?;
        anon_inode::new_file::<Self>(c"[luo_pad]", pad)
    }

    fn save(&self, saved: &mut SavedPad, freeze: bool) {
        let mut content = self.content.lock();
        content.frozen = freeze;

        saved.number = self.number;
        // Lossless, and the text is never longer than there is room.
        saved.length = content.text.len() as u64;
        for (to, from) in saved.text.iter_mut().zip(content.text.iter()) {
            *to = *from;
        }
    }

    /// Makes the file of a pad that was saved.
    fn restore(saved: &SavedPad) -> Result<ARef<File>> {
        let length = usize::try_from(saved.length)?;
        // Whatever the previous kernel left, it is not to be trusted.
        let saved_text = saved.text.get(..length).ok_or(EINVAL)?;
        let mut text = KVec::new();
        text.extend_from_slice(saved_text, GFP_KERNEL)?;

        let file = Self::file(saved.number, text)?;
        raise(&LAST, saved.number);
        Ok(file)
    }
}

#[vtable]
impl AnonFile for Pad {
    type Ptr = Arc<Self>;

    fn read(
        pad: ArcBorrow<'_, Self>,
        position: &mut i64,
        to: &mut IovIterDest<'_>,
    ) -> Result<usize> {
        let mut text = KVec::with_capacity(Self::MAX, GFP_KERNEL)?;
        text.extend_from_slice(&pad.content.lock().text, GFP_KERNEL)?;

        to.simple_read_from_buffer(position, &text)
    }

    fn write(
        pad: ArcBorrow<'_, Self>,
        position: &mut i64,
        from: &mut IovIterSource<'_>,
    ) -> Result<usize> {
        if from.len() > Self::MAX {
            return Err(EFBIG);
        }
        let mut text = KVec::new();
        let length = from.copy_from_iter_vec(&mut text, GFP_KERNEL)?;

        let mut content = pad.content.lock();
        if content.frozen {
            // The next kernel would not have it.
            return Err(EBUSY);
        }
        content.text = text;
        // What comes next is a read of it.
        *position = 0;
        Ok(length)
    }

    fn ioctl(pad: ArcBorrow<'_, Self>, cmd: u32, arg: usize) -> Result<isize> {
        match cmd {
            GET_NUMBER => {
                UserSlice::new(UserPtr::from_addr(arg), _IOC_SIZE(cmd))
                    .writer()
                    .write(&pad.number)?;
                Ok(0)
            }
            _ => Err(ENOTTY),
        }
    }
}

/// The handler for pads.
struct Pads;

#[vtable]
impl FileHandler for Pads {
    const COMPATIBLE: &'static CStr = c"luo-pad-v1";
    type Handle = Preserved<SavedPad>;
    type State = ();

    fn flbs() -> &'static [&'static dyn AnyFlb] {
        static FLBS: [&dyn AnyFlb; 1] = [&NUMBERS];
        &FLBS
    }

    fn can_preserve(file: &File) -> bool {
        anon_inode::data_of::<Pad>(file).is_some()
    }

    fn preserve(file: &File) -> Result<(Preserved<SavedPad>, ())> {
        let pad = anon_inode::data_of::<Pad>(file).ok_or(EINVAL)?;
        let mut saved = Preserved::new()?;

        pad.save(&mut saved, false);
        Ok((saved, ()))
    }

    /// The pad was in use until now; what counts is its last text.
    fn freeze(file: &File, _state: &mut (), saved: &mut Preserved<SavedPad>) -> Result {
        let pad = anon_inode::data_of::<Pad>(file).ok_or(EINVAL)?;

        pad.save(saved, true);
        Ok(())
    }

    fn unfreeze(file: &File, _state: &mut (), _saved: &mut Preserved<SavedPad>) {
        if let Some(pad) = anon_inode::data_of::<Pad>(file) {
            pad.content.lock().frozen = false;
        }
    }

    fn unpreserve(_file: &File, _state: (), saved: Preserved<SavedPad>) {
        drop(saved);
    }

    fn retrieve(
        saved: Unclaimed<SavedPad>,
    ) -> Result<ARef<File>, RetrieveError<Unclaimed<SavedPad>>> {
        match saved.copy().and_then(|copy| Pad::restore(&copy)) {
            Ok(file) => Ok(file),
            // No pad can be made of it, now or later.
            Err(EINVAL) => Err(RetrieveError::Final(EINVAL)),
            // Nothing is lost as long as `saved` is there.
            Err(e) => Err(RetrieveError::Again(e, saved)),
        }
    }

    fn finish(outcome: Outcome<'_, Unclaimed<SavedPad>>) {
        // If the pad was not retrieved, this frees it.
        drop(outcome);
    }
}

/// What is handed over for all pads: `struct luo_pad_numbers`.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct SavedNumbers {
    last: u64,
}

/// The numbers of pads, which must be unlike each other across live updates.
struct Numbers;

#[vtable]
impl Flb for Numbers {
    const COMPATIBLE: &'static CStr = c"luo-pad-numbers-v1";
    type Handle = Address<SavedNumbers>;
    type Outgoing = Pin<KBox<Mutex<Preserved<SavedNumbers>>>>;
    type Incoming = u64;

    fn preserve() -> Result<(Address<SavedNumbers>, Self::Outgoing)> {
        let mut saved = Preserved::<SavedNumbers>::new()?;
        let address = saved.address();

        saved.last = LAST.load(Relaxed);
        // The memory stays with us, as pads go on being made.
        Ok((address, KBox::pin_init(new_mutex!(saved), GFP_KERNEL)?))
    }

    fn unpreserve(saved: Self::Outgoing, _address: Address<SavedNumbers>) {
        drop(saved);
    }

    fn retrieve(saved: Unclaimed<SavedNumbers>) -> Result<u64> {
        Ok(saved.claim()?.last)
    }

    fn finish(_last: u64) {}
}

/// `/dev/luo-pad`.
struct PadDevice;

#[vtable]
impl MiscDevice for PadDevice {
    type Ptr = ();

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result {
        Ok(())
    }

    fn ioctl(_device: (), _file: &File, cmd: u32, _arg: usize) -> Result<isize> {
        if cmd != CREATE {
            return Err(ENOTTY);
        }

        let fd =
            FileDescriptorReservation::get_unused_fd_flags(kernel::fs::file::flags::O_CLOEXEC)?;
        let number = fd.reserved_fd();
        fd.fd_install(Pad::file(next_number(), KVec::new())?);
        Ok(isize::try_from(number)?)
    }
}
