// SPDX-License-Identifier: GPL-2.0

//! Memfds across a live update.
//!
//! A handler like any driver's: it stands on the public driver API and on the shmem abstraction,
//! and so runs under any implementation of LUO. It knows three layouts:
//!
//! - [`Extents`], our own and what is written by default: all of a memfd, with holes as holes and
//!   pages in runs;
//! - [`Small`], the same for those of at most one page, of which there may be many;
//! - [`FoliosV2`], the layout of the C handler: content, size, position and seals. It is always
//!   understood, and written if `liveupdate.abi=luo-v5` asks for it, as one does who goes back to a
//!   kernel that knows nothing else.
//!
//! What happens to a file:
//!
//! - preserve: its mapping is frozen, and all pages that are there are pinned and preserved. If they
//!   lie apart in memory, they are first moved together.
//! - freeze: what changed since is written down: position, seals, owner, and so on. If there are
//!   holes, whoever fills one from now on has the folio listed (`memfd_late`) and preserved, until
//!   the kexec is called off. Folios that were inserted before are pinned and preserved, too, and
//!   everything is described anew.
//! - retrieve: first all of the description is validated without touching anything, and a file is
//!   made. Only then pages are claimed, one part after the other, and put into it. Should that
//!   fail, the rest is claimed and freed.

#![deny(unsafe_code)]

use core::{
    fmt::{
        self,
        Display, //
    },
    iter,
    marker::PhantomData,
    ops::{
        Deref,
        Range, //
    }, //
};
use kernel::{
    fs::{
        file::flags,
        File, //
    },
    kho::{
        self,
        PhysAddr,
        Preserved,
        Restored,
        RestoredFolio,
        RestoredPages,
        Unclaimed, //
    },
    liveupdate::{
        self,
        FileHandler,
        HandlerCell,
        Outcome,
        OutgoingAbi,
        Registration,
        RetrieveError,
        Seen, //
    },
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    shmem::{
        self,
        Filling,
        FrozenMapping,
        Memfd,
        NewMemfd,
        PinnedExtent,
        PreservedExtents,
        RecordedMapping, //
    },
    sync::aref::ARef, //
};

use abi::{
    chain::{
        self,
        Fault, //
    },
    memfd::{
        self as layout,
        Extent,
        ExtentCheck,
        ExtentKind,
        ExtentRecord,
        FolioCheckV2,
        FolioFlags,
        FolioV2,
        FoundV2,
        MemfdError,
        MemfdHeader,
        MemfdV2,
        OpenFlags,
        SEALS_KNOWN, //
    },
    memfd_extents::FILE_NAME_LEN,
    memfd_v2::FOLIOS_PER_PAGE,
    vmalloc::{
        self,
        Area,
        Chunk,
        ListError, //
    },
    Block,
    Memory,
    Name,
    Phys, //
};

#[path = "abi/lib.rs"]
pub mod abi;
mod memfd_late;
mod memfd_slots;
mod memfd_small;

use memfd_late::FileJournal;
use memfd_small::Small;

module! {
    type: MemfdLuo,
    name: "memfd_luo",
    authors: ["The LUO developers"],
    description: "Live update of memfds",
    license: "GPL",
}

/// All handlers; none if live update is off.
struct MemfdLuo {
    _handlers: Option<Handlers>,
}

/// The first one registered is the first one asked.
struct Handlers {
    _small: Registration<Small>,
    _extents: Registration<Handler<Extents>>,
    _folios_v2: Registration<Handler<FoliosV2>>,
}

impl Handlers {
    fn register() -> Result<Self> {
        static SMALL: HandlerCell<Small> = HandlerCell::new();
        static EXTENTS: HandlerCell<Handler<Extents>> = HandlerCell::new();
        static FOLIOS_V2: HandlerCell<Handler<FoliosV2>> = HandlerCell::new();

        memfd_late::init()?;
        memfd_slots::init()?;
        Ok(Self {
            _small: SMALL.register()?,
            _extents: EXTENTS.register()?,
            _folios_v2: FOLIOS_V2.register()?,
        })
    }
}

impl kernel::Module for MemfdLuo {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let handlers = match Handlers::register() {
            Ok(handlers) => Some(handlers),
            Err(EOPNOTSUPP) => None,
            Err(e) => {
                pr_err!("handlers cannot be registered: {:?}\n", e);
                return Err(e);
            }
        };
        Ok(Self {
            _handlers: handlers,
        })
    }
}

/// Whether memfds shall be handed over as a kernel expects that has the C implementation.
fn prefer_v2() -> bool {
    liveupdate::outgoing_abi() == OutgoingAbi::LuoV5
}

/// A way to write a memfd down.
///
/// A page holds a header, whose address is what LUO hands over; the header says where the content
/// is listed.
trait Layout: 'static {
    /// Name and version.
    const COMPATIBLE: &'static CStr;

    /// Whether single pages that follow each other are one part; else each is one.
    const RUNS: bool;

    /// The list of the parts of the content, as it goes out.
    type Parts: Send;

    /// The list of the parts of the content, as it comes in: where it is.
    type List;

    /// Whether new memfds shall be handed over in this way.
    fn wanted() -> bool;

    /// Whether a file can be described.
    ///
    /// # Errors
    ///
    /// Any, for the user who wants to preserve the file.
    fn check(attributes: &Attributes) -> Result;

    /// Lists the parts, which come in the order of the file.
    fn list(extents: &[PinnedExtent]) -> Result<Self::Parts>;

    /// Where the late folios are listed of the file for which `file` is handed over.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    fn journal(file: u64) -> Result<FileJournal>;

    /// Writes the header. `late` is the list of late folios.
    fn write(
        header: &mut Block,
        attributes: &Attributes,
        parts: &Self::Parts,
        late: Option<Phys>,
    ) -> Result;

    /// Reads the header.
    fn read(header: &Block) -> Result<(Attributes, Self::List)>;

    /// The list of late folios, if there may be some of this file.
    fn late(list: &Self::List) -> Option<Phys>;

    /// Reads from the header where the list is, whatever else the file has.
    fn read_list(header: &Block) -> Result<Self::List>;

    /// Describes what stands in the header, for people.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if that makes no sense, without a word about it.
    fn summarize(header: &Block, to: &mut dyn fmt::Write) -> Result;

    /// Goes through the list.
    ///
    /// If `mem` claims what it looks at, then the list is gone afterwards.
    fn walk<M: Memory<Error = Error>>(
        mem: &M,
        list: &Self::List,
        visit: impl FnMut(&Part) -> Result,
    ) -> Result;
}

/// All of a memfd but its content. The name is shorter than `NAME` bytes.
struct Attributes<const NAME: usize = FILE_NAME_LEN> {
    position: u64,
    size: u64,
    seals: u32,
    mode: u32,
    /// User and group, if they are known.
    owner: Option<(u32, u32)>,
    open: OpenFlags,
    name: Option<Name<NAME>>,
    /// Whether some pages are poisoned.
    poisoned: bool,
}

/// The flags of open files that are carried over, as they are known here and there.
const OPEN_FLAGS: [(u32, u32); 6] = [
    (flags::O_APPEND, OpenFlags::APPEND),
    (flags::O_NONBLOCK, OpenFlags::NONBLOCK),
    (flags::O_DIRECT, OpenFlags::DIRECT),
    (flags::O_NOATIME, OpenFlags::NOATIME),
    (flags::O_DSYNC, OpenFlags::DSYNC),
    (flags::O_SYNC, OpenFlags::DSYNC | OpenFlags::SYNC),
];

/// The access modes, likewise.
const ACCESS_MODES: [(u32, u32); 3] = [
    (flags::O_RDONLY, OpenFlags::READ),
    (flags::O_WRONLY, OpenFlags::WRITE),
    (flags::O_RDWR, READ_WRITE),
];

const READ_WRITE: u32 = OpenFlags::READ | OpenFlags::WRITE;

/// All flags of those rows of a table that `holds` picks, as known here and there.
fn union<const N: usize>(table: [(u32, u32); N], holds: impl Fn(u32, u32) -> bool) -> (u32, u32) {
    table
        .iter()
        .filter(|(ours, theirs)| holds(*ours, *theirs))
        .fold((0, 0), |all, row| (all.0 | row.0, all.1 | row.1))
}

impl<const NAME: usize> Attributes<NAME> {
    /// Whether a file can be described: its seals, and the flags by which it is open.
    ///
    /// # Errors
    ///
    /// - [`EOPNOTSUPP`] if it has seals that are not known here, or other restrictions that would
    ///   be lost: nobody may gain rights by a live update.
    /// - [`EBADF`] if it is open neither for reading nor for writing.
    fn check(memfd: &Memfd) -> Result<(u32, OpenFlags)> {
        let seals = memfd.seals();
        if seals & !SEALS_KNOWN != 0 || memfd.has_other_restrictions() {
            return Err(EOPNOTSUPP);
        }

        let flags = memfd.flags();
        let open = union(ACCESS_MODES, |ours, _| flags & flags::O_ACCMODE == ours).1
            | union(OPEN_FLAGS, |ours, _| flags & ours == ours).1;

        Ok((seals, OpenFlags::from_bits(open).ok_or(EBADF)?))
    }

    /// Looks at a file.
    ///
    /// # Errors
    ///
    /// Those of [`Attributes::check`].
    fn of(memfd: &Memfd) -> Result<Self> {
        let (seals, open) = Self::check(memfd)?;

        Ok(Self {
            position: memfd.position(),
            size: memfd.size(),
            seals,
            mode: memfd.mode(),
            owner: Some(memfd.owner()),
            open,
            name: memfd.with_name(|name| Name::from_cstr(name).ok()),
            poisoned: false,
        })
    }

    /// Looks at a file, all of whose pages are pinned, and at these.
    ///
    /// # Errors
    ///
    /// Those of [`Attributes::check`].
    fn of_pinned(mapping: &FrozenMapping) -> Result<Self> {
        Ok(Self {
            poisoned: mapping.has_poison(),
            ..Self::of(mapping)?
        })
    }

    /// Refuses a file that this kernel would take for a good one.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if pages are poisoned, and this kernel knows nothing of such pages.
    fn expect_readable(&self) -> Result {
        if self.poisoned && !cfg!(CONFIG_MEMORY_FAILURE) {
            malformed("memfd: pages are poisoned, which this kernel cannot tell (MEMORY_FAILURE)");
            return Err(EOPNOTSUPP);
        }
        Ok(())
    }

    /// Makes a file that is all of this, and a hole.
    fn build(&self) -> Result<NewMemfd> {
        let mut file = NewMemfd::new(self.name.as_ref().map_or(c"", Name::as_cstr))?;

        file.set_mode(self.mode);
        if let Some(owner) = self.owner {
            file.set_owner(owner);
        }
        file.set_size(self.size)?;
        // After the mode, which has a say in it. Before opening anew, perhaps read-only.
        file.add_seals(self.seals)?;

        let flags = self.flags();
        if flags != flags::O_RDWR {
            file = file.reopen(flags)?;
        }
        file.set_position(self.position)?;
        Ok(file)
    }

    /// The flags by which the file is to be opened.
    fn flags(&self) -> u32 {
        let open = self.open.bits();

        union(ACCESS_MODES, |_, theirs| open & READ_WRITE == theirs).0
            | union(OPEN_FLAGS, |_, theirs| open & theirs == theirs).0
    }
}

/// A part of the content of an incoming memfd.
#[derive(Clone, Copy)]
struct Part {
    start: PhysAddr,
    index: u64,
    /// How many pages.
    pages: usize,
    /// They were preserved as one folio. Else they are single pages: of [`Singles`], or one that
    /// was preserved together with those of other files.
    folio: bool,
    /// They have content; else they read as zeros.
    uptodate: bool,
}

impl Part {
    /// The pages of an extent.
    fn of(extent: &Extent) -> Result<Self> {
        Ok(Self {
            start: address(extent.start)?,
            index: extent.index,
            pages: usize::try_from(extent.pages)?,
            folio: extent.kind != ExtentKind::Pages,
            uptodate: true,
        })
    }

    /// Checks that the pages are there, leaves them there, and reports if they are not.
    fn find(&self) -> Result {
        self.check().map_err(|e| not_there(e, self.start))
    }

    /// Checks that the pages are there, and leaves them there.
    fn check(&self) -> Result {
        match self.folio {
            true if kho::preserved_size(self.start)? != self.pages << PAGE_SHIFT => Err(EINVAL),
            true => Ok(()),
            false => kho::check_shared(self.start),
        }
    }

    /// Puts a folio into `file`, which has `file_pages` pages.
    ///
    /// Whatever happens, it is claimed.
    fn fill(&self, file: &mut Filling, file_pages: u64) -> Result {
        if self.stays_whole() && self.pages <= 1 << file.max_order() {
            return file.insert(RestoredFolio::claim(self.start)?, self.index, self.uptodate);
        }

        let pages = within(self.claim_pages()?, self.index, file_pages);
        file.insert_pages(pages, self.index, self.uptodate)
    }

    /// Whether this is a folio that need not be taken apart, as one is that has a poisoned page: that
    /// must never come to the page allocator, not even as a part of something.
    fn stays_whole(&self) -> bool {
        self.folio && !kho::is_poisoned(self.start, self.pages << PAGE_SHIFT)
    }

    /// Claims the pages, each by itself.
    fn claim_pages(&self) -> Result<RestoredPages> {
        match self.folio {
            true => RestoredPages::claim(self.start, self.pages),
            false => RestoredPages::claim_shared(self.start),
        }
    }

    /// Frees the pages.
    fn free(&self) -> Result {
        match self.stays_whole() {
            true => RestoredFolio::claim(self.start).map(drop),
            false => self.claim_pages().map(drop),
        }
    }
}

/// Single pages of a file that follow each other in memory.
struct Single {
    start: PhysAddr,
    index: u64,
    pages: u32,
    /// The place among all of them, in the order of the file.
    place: u32,
}

impl Single {
    fn pages(&self) -> usize {
        self.pages as usize
    }

    fn end(&self) -> Option<u64> {
        let size = u64::from(self.pages).checked_mul(PAGE_SIZE as u64)?;
        self.start.get().checked_add(size)
    }

    /// Whether `next` is behind these pages in memory.
    fn is_followed_by(&self, next: &Self) -> bool {
        self.end() == Some(next.start.get())
    }
}

/// The parts of a file that are single pages, in the order of memory.
///
/// What follows each other there was preserved as one, wherever it is in the file, and is claimed
/// as one.
struct Singles {
    all: KVVec<Single>,
    /// Places for them, in the order of the file, for when they are claimed: nothing may fail then.
    claimed: KVVec<(u64, RestoredPages)>,
}

impl Singles {
    /// Takes them out of a list. What else there is, is for `visit`.
    fn of<L: Layout, M: Memory<Error = Error>>(
        mem: &M,
        list: &L::List,
        mut visit: impl FnMut(&Part) -> Result,
    ) -> Result<Self> {
        let mut all = KVVec::new();

        L::walk(mem, list, |part| match part.folio {
            true => visit(part),
            false => {
                let single = Single {
                    start: part.start,
                    index: part.index,
                    pages: u32::try_from(part.pages)?,
                    place: u32::try_from(all.len())?,
                };
                Ok(all.push(single, GFP_KERNEL)?)
            }
        })?;
        all.sort_unstable_by_key(|single| single.start);
        Ok(Self {
            all,
            claimed: KVVec::new(),
        })
    }

    /// Those that follow each other, and how many pages they have.
    fn runs(all: &[Single]) -> impl Iterator<Item = (&[Single], PhysAddr, usize)> {
        all.chunk_by(Single::is_followed_by)
            .filter_map(|run| Some((run, run.first()?.start, run.iter().map(Single::pages).sum())))
    }

    /// How many pages there are, if no page is there twice.
    fn pages(&self) -> usize {
        self.all.iter().map(Single::pages).sum()
    }

    /// Checks that all pages are there, no page twice, and leaves them there. Makes places for them.
    fn find(&mut self) -> Result {
        let twice = |(one, next): (&Single, &Single)| one.end() > Some(next.start.get());
        if self.all.iter().zip(self.all.iter().skip(1)).any(twice) {
            return Err(malformed("memfd: a page is used twice"));
        }
        for (_, start, pages) in Self::runs(&self.all) {
            kho::check_pages(start, pages).map_err(|e| not_there(e, start))?;
        }

        for _ in &self.all {
            self.claimed.push((0, RestoredPages::none()), GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Puts all pages into `file`, which has `file_pages` pages. Whatever happens, they are claimed.
    fn fill(self, file: &mut Filling, file_pages: u64) -> Result {
        let Self { all, mut claimed } = self;
        let mut result = Ok(());

        for (run, start, pages) in Self::runs(&all) {
            let mut pages = match RestoredPages::claim(start, pages) {
                Ok(pages) => pages,
                Err(e) => {
                    result = result.and(Err(e));
                    continue;
                }
            };
            for single in run {
                let pages = pages.split(single.pages());
                if let Some(place) = claimed.get_mut(single.place as usize) {
                    *place = (single.index, pages);
                }
            }
        }

        // After an error, what was claimed is of no use to anybody.
        result?;
        let claimed = claimed.into_iter();
        file.insert_all(
            claimed.map(|(index, pages)| (index, within(pages, index, file_pages))),
            true,
        )
    }

    /// Frees all pages.
    fn free(&self) -> Result {
        let mut result = Ok(());

        for (_, start, pages) in Self::runs(&self.all) {
            result = result.and(RestoredPages::claim(start, pages).map(drop));
        }
        result
    }
}

/// Frees of pages, which begin at `index` of a file, what lies behind the file's end.
fn within(mut pages: RestoredPages, index: u64, file_pages: u64) -> RestoredPages {
    let most = usize::try_from(file_pages.saturating_sub(index)).unwrap_or(usize::MAX);
    if most < pages.len() {
        pages.truncate(most);
    }
    pages
}

/// What the next kernel finds of a file beside the header, and what keeps it as it is. Dropping it
/// undoes all.
struct State<L: Layout> {
    parts: L::Parts,
    /// In the order of the file.
    extents: PreservedExtents,
    mapping: RecordedMapping<FileJournal>,
}

impl<L: Layout> State<L> {
    /// Preserves a memfd. The first of the two is the header.
    fn new(memfd: &Memfd) -> Result<(Preserved<Block>, Self)> {
        let mapping = RecordedMapping::new(memfd)?;
        let attributes = Attributes::of(memfd)?;
        L::check(&attributes)?;

        let pin_all = || pin_pages::<L>(&mapping, iter::once(0..u64::MAX));
        let mut extents = PreservedExtents::new(L::RUNS);
        if let Some(apart) = extents.add_unless_scattered(pin_all()?)? {
            mapping.gather(&apart)?;
            extents.add(pin_all()?)?;
        }
        expect_no_poison(&mapping)?;

        let parts = L::list(&extents)?;
        let mut header = Preserved::<Block>::new()?;
        L::write(&mut header, &attributes, &parts, None)?;

        let state = Self {
            parts,
            extents,
            mapping,
        };
        Ok((header, state))
    }

    fn freeze(&mut self, header: &mut Preserved<Block>) -> Result {
        self.describe(header).inspect_err(|_| self.mapping.stop())
    }

    fn describe(&mut self, header: &mut Preserved<Block>) -> Result {
        let mut late = None;

        if self.has_holes() {
            let journal = L::journal(header.phys().get())?;
            late = journal.list();
            self.mapping.start(journal)?;
            self.catch_up()?;
        }
        let attributes = Attributes::of_pinned(&self.mapping)?;
        L::check(&attributes)?;
        L::write(header, &attributes, &self.parts, late)
    }

    fn unfreeze(&mut self) {
        self.mapping.stop();
    }

    fn has_holes(&self) -> bool {
        holes(&self.extents, pages_of(self.mapping.size()))
            .next()
            .is_some()
    }

    /// Pins and preserves the pages that were inserted before that was recorded.
    fn catch_up(&mut self) -> Result {
        if !self.mapping.has_changed() {
            return Ok(());
        }

        let found = pin_pages::<L>(&self.mapping, holes(&self.extents, u64::MAX))?;
        self.mapping.take_over(&found);
        if !found.is_empty() {
            self.extents.add(found)?;
        }

        // Not before they are listed, too: if that fails, it is done the next time.
        self.parts = L::list(&self.extents)?;
        self.mapping.caught_up();
        Ok(())
    }
}

/// Refuses a file of which a page is poisoned. At the reboot, when nobody could do something about
/// it, such pages are handed over as what they are.
///
/// # Errors
///
/// [`EHWPOISON`].
fn expect_no_poison(mapping: &FrozenMapping) -> Result {
    match mapping.has_poison() && !liveupdate::is_rebooting() {
        true => Err(EHWPOISON),
        false => Ok(()),
    }
}

/// Where no extent is, up to the index `end`.
fn holes(extents: &[PinnedExtent], end: u64) -> impl Iterator<Item = Range<u64>> + '_ {
    let mut extents = extents.iter();
    let mut next = Some(0);

    iter::from_fn(move || loop {
        let from = next?;
        let extent = extents.next();
        next = extent.map(end_of);

        let to = extent.map_or(end, |extent| extent.index());
        if from < to {
            return Some(from..to);
        }
    })
}

/// Pins the pages that are there in ranges of the file.
fn pin_pages<L: Layout>(
    mapping: &FrozenMapping,
    ranges: impl Iterator<Item = Range<u64>>,
) -> Result<KVVec<PinnedExtent>> {
    let mut extents = KVVec::new();

    for range in ranges {
        mapping.pins(range, L::RUNS)?.collect(&mut extents)?;
    }
    Ok(extents)
}

/// How many pages a file has whose size is `size`.
fn pages_of(size: u64) -> u64 {
    size.div_ceil(PAGE_SIZE as u64)
}

fn end_of(extent: &PinnedExtent) -> u64 {
    extent.index().saturating_add(extent.pages().into())
}

// Both are read, whichever is written.
kernel::liveupdate_note!("handler", layout::COMPATIBLE_EXTENTS);
kernel::liveupdate_note!("handler", layout::COMPATIBLE_V2);

/// The handler for memfds in one layout.
struct Handler<L>(PhantomData<L>);

#[vtable]
impl<L: Layout> FileHandler for Handler<L> {
    const COMPATIBLE: &'static CStr = L::COMPATIBLE;
    type Handle = Preserved<Block>;
    type State = State<L>;

    fn can_preserve(file: &File) -> bool {
        L::wanted() && Memfd::from_file(file).is_some()
    }

    fn id(file: &File) -> usize {
        shmem::inode_id(file)
    }

    fn preserve(file: &File) -> Result<(Preserved<Block>, State<L>)> {
        State::new(Memfd::from_file(file).ok_or(EINVAL)?)
    }

    fn freeze(_file: &File, state: &mut State<L>, header: &mut Preserved<Block>) -> Result {
        state.freeze(header)
    }

    fn unfreeze(_file: &File, state: &mut State<L>, _header: &mut Preserved<Block>) {
        state.unfreeze();
    }

    fn unpreserve(_file: &File, state: State<L>, header: Preserved<Block>) {
        drop(header);
        drop(state);
    }

    fn retrieve(header: Unclaimed<Block>) -> Result<ARef<File>, RetrieveError<Unclaimed<Block>>> {
        let read = Found::<L>::read(&header)
            .and_then(|found| Ok((found.attributes.build()?.fill(found.pages)?, found)));

        match read {
            Ok((file, found)) => Ok(found.fill(file, header)?),
            // Nothing was claimed. If it was for a shortage, one may try again.
            Err(e) if is_shortage(e) => Err(RetrieveError::Again(e, header)),
            // What the header lists may still be there when the file is finished.
            Err(e) => {
                header.leave();
                Err(RetrieveError::Final(e))
            }
        }
    }

    fn finish(outcome: Outcome<'_, Unclaimed<Block>>) {
        match outcome {
            Outcome::Retrieved(_) => {}
            // Where it failed before anything was claimed, everything is still there.
            Outcome::NeverAsked(header) => discard::<L>(header),
            Outcome::Failed { left, .. } => drop(left.map(discard::<L>)),
        }
    }

    fn summarize(seen: Seen<'_, Self>, to: &mut dyn fmt::Write) -> Result {
        match seen {
            Seen::Preserved { state, .. } => summarize(&state.mapping, &state.extents, to),
            Seen::Waiting(header) => L::summarize(&*header.copy()?, to),
            Seen::Retrieved(file) => summarize_file(file, to),
        }
    }
}

/// Describes a file that is preserved, for people.
fn summarize(memfd: &Memfd, extents: &[PinnedExtent], to: &mut dyn fmt::Write) -> Result {
    let (mut pages, mut folios) = (0_u64, 0_u64);

    for extent in extents {
        let count = u64::from(extent.pages());
        pages = pages.saturating_add(count);
        folios = folios.saturating_add(if extent.order() == 0 { count } else { 1 });
    }
    let (size, extents) = (memfd.size(), extents.len());
    Ok(write!(
        to,
        "size {size}, {pages} pages, {folios} folios, {extents} extents"
    )?)
}

/// Describes a file that is there again, for people.
fn summarize_file(file: &File, to: &mut dyn fmt::Write) -> Result {
    let memfd = Memfd::from_file(file).ok_or(EINVAL)?;

    Ok(write!(to, "size {}", memfd.size())?)
}

/// An incoming memfd whose description was found to be right.
struct Found<L: Layout> {
    attributes: Attributes,
    list: L::List,
    singles: Singles,
    late: KVec<Part>,
    /// Of all folios and single pages.
    pages: usize,
}

impl<L: Layout> Found<L> {
    /// Reads and validates the description, and claims nothing.
    fn read(header: &Unclaimed<Block>) -> Result<Self> {
        let page = header.copy().map_err(|e| not_there(e, header.phys()))?;
        let (attributes, list) = L::read(&page)?;

        let mut pages = 0_usize;
        let mut singles = Singles::of::<L, _>(&Look, &list, |folio| {
            pages = pages.checked_add(folio.pages).ok_or(EINVAL)?;
            folio.find()
        })?;
        singles.find()?;
        pages = pages.checked_add(singles.pages()).ok_or(EINVAL)?;

        let late = late_parts(L::late(&list), header.phys().get())?;
        for part in &late {
            part.find()?;
            pages = pages.checked_add(part.pages).ok_or(EINVAL)?;
        }

        Ok(Self {
            attributes,
            list,
            singles,
            late,
            pages,
        })
    }

    /// Claims the pages and puts them into `file`. The description goes away.
    fn fill(self, mut file: Filling, header: Unclaimed<Block>) -> Result<ARef<File>> {
        let file_pages = pages_of(self.attributes.size);
        let mut result = self.singles.fill(&mut file, file_pages);

        let walked = L::walk(&Claim, &self.list, |part| {
            match result {
                _ if !part.folio => {}
                Ok(()) => result = part.fill(&mut file, file_pages),
                // What is left is of no use to anybody.
                Err(_) => drop(part.free()),
            }
            Ok(())
        });
        for part in &self.late {
            match result {
                Ok(()) => result = part.fill(&mut file, file_pages),
                Err(_) => drop(part.free()),
            }
        }
        if let Some(list) = L::late(&self.list) {
            memfd_late::finished(list);
        }

        drop(header);
        result?;
        walked?;
        Ok(file.into_file())
    }
}

/// The late folios of the file for which `file` was handed over, as `list` has them.
fn late_parts(list: Option<Phys>, file: u64) -> Result<KVec<Part>> {
    let mut parts = KVec::new();
    let Some(list) = list else {
        return Ok(parts);
    };

    for extent in &memfd_late::of_file(list, file)? {
        parts.push(Part::of(extent)?, GFP_KERNEL)?;
    }
    Ok(parts)
}

/// Frees them.
fn free_late(list: Option<Phys>, file: u64) -> Result {
    let mut freed = Ok(());

    for part in &late_parts(list, file)? {
        freed = freed.and(part.free());
    }
    if let Some(list) = list {
        memfd_late::finished(list);
    }
    freed
}

/// Frees all that is left of an incoming memfd.
fn discard<L: Layout>(header: Unclaimed<Block>) {
    let file = header.phys().get();
    let Ok(header) = header.claim() else {
        return;
    };

    let freed = L::read_list(&header).and_then(|list| {
        let late = L::late(&list);
        let freed = free_late(late, file);
        let singles = Singles::of::<L, _>(&Claim, &list, Part::free)?;
        singles.free().and(freed)
    });
    if freed.is_err() {
        pr_warn!("memory of a memfd that nobody retrieved stays reserved\n");
    }
}

/// The memory of the previous kernel, to be copied.
struct Look;

impl Memory for Look {
    type Page = KBox<Block>;
    type Error = Error;

    fn page(&self, at: Phys) -> Result<KBox<Block>> {
        let at = address(at)?;
        kho::copy_of(at).map_err(|e| not_there(e, at))
    }
}

/// The memory of the previous kernel, to be claimed and then freed.
struct Claim;

impl Memory for Claim {
    type Page = Restored<Block>;
    type Error = Error;

    fn page(&self, at: Phys) -> Result<Restored<Block>> {
        let at = address(at)?;
        Restored::claim(at).map_err(|e| not_there(e, at))
    }
}

fn address(at: Phys) -> Result<PhysAddr> {
    PhysAddr::new(at.get()).ok_or(EINVAL)
}

fn phys_of(at: PhysAddr) -> Result<Phys> {
    Phys::new(at.get()).ok_or(EINVAL)
}

/// An extent as the layouts have it.
fn extent_of(extent: &PinnedExtent) -> Result<Extent> {
    Ok(Extent {
        start: phys_of(extent.phys()?)?,
        index: extent.index(),
        pages: extent.pages(),
        kind: match extent.order() {
            0 => ExtentKind::Pages,
            order => ExtentKind::Folio {
                order: u16::try_from(order)?,
            },
        },
    })
}

/// Whether it makes sense to try again after an error.
fn is_shortage(error: Error) -> bool {
    matches!(error, ENOMEM | ENOSPC | ENFILE | EMFILE | EINTR | EAGAIN)
}

/// Reports what is wrong with a description.
fn malformed(what: impl Display) -> Error {
    pr_err!("{}\n", format_args!("{what}"));
    EINVAL
}

/// Reports why a header is not usable.
fn bad_header(what: MemfdError) -> Error {
    let error = malformed(what);
    match what {
        MemfdError::Seals { .. } | MemfdError::Flags { .. } => EOPNOTSUPP,
        _ => error,
    }
}

/// Reports that something is not where it should be, unless it could only not be looked at.
fn not_there(error: Error, at: PhysAddr) -> Error {
    match error {
        ENOMEM => ENOMEM,
        _ => malformed(format_args!("nothing fitting is preserved at {at:?}")),
    }
}

/// Preserved pages that hold records.
struct Pages(KVVec<Preserved<Block>>);

impl Pages {
    fn new() -> Self {
        Self(KVVec::new())
    }

    /// Where the first page is, if there is one.
    fn first(&self) -> Result<Option<Phys>> {
        self.0.first().map(|page| phys_of(page.phys())).transpose()
    }

    /// Has something put into the last page, or into a new one behind it, to which `link` leads.
    ///
    /// `put` says whether there was place.
    fn put(
        &mut self,
        put: impl Fn(&mut Block) -> bool,
        link: impl FnOnce(&mut Block, Phys),
    ) -> Result {
        if self.last().is_some_and(&put) {
            return Ok(());
        }

        let page = Preserved::<Block>::new()?;
        let phys = phys_of(page.phys())?;
        self.0.reserve(1, GFP_KERNEL_ACCOUNT)?;
        if let Some(last) = self.last() {
            link(last, phys);
        }
        self.0.push(page, GFP_KERNEL_ACCOUNT)?;

        match self.last().is_some_and(put) {
            true => Ok(()),
            false => Err(EINVAL),
        }
    }

    /// Adds an empty page behind the last.
    fn add(&mut self) -> Result<Phys> {
        let page = Preserved::<Block>::new()?;
        let phys = phys_of(page.phys())?;

        self.0.push(page, GFP_KERNEL_ACCOUNT)?;
        Ok(phys)
    }

    fn last(&mut self) -> Option<&mut Block> {
        self.0.last_mut().map(|page| &mut **page)
    }
}

impl Deref for Pages {
    type Target = [Preserved<Block>];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// `memfd-extents-v1`: our own layout.
struct Extents;

/// The extents of a memfd, in a chain of blocks.
struct ExtentBlocks {
    blocks: Pages,
    extents: u64,
    pages: u64,
}

/// Where the extents of an incoming memfd are.
struct ExtentList {
    first: Option<Phys>,
    extents: u64,
    late: Option<Phys>,
    /// The check of the first one.
    check: ExtentCheck,
}

impl ExtentList {
    fn of(memfd: &layout::Memfd) -> Self {
        Self {
            first: memfd.extents,
            extents: memfd.nr_extents,
            late: memfd.late,
            check: ExtentCheck::new(memfd),
        }
    }
}

impl Layout for Extents {
    const COMPATIBLE: &'static CStr = layout::COMPATIBLE_EXTENTS;
    const RUNS: bool = true;

    type Parts = ExtentBlocks;
    type List = ExtentList;

    fn wanted() -> bool {
        !prefer_v2()
    }

    fn check(_attributes: &Attributes) -> Result {
        Ok(())
    }

    fn list(extents: &[PinnedExtent]) -> Result<ExtentBlocks> {
        let mut parts = ExtentBlocks {
            blocks: Pages::new(),
            extents: 0,
            pages: 0,
        };

        for extent in extents {
            let record = ExtentRecord::new(&extent_of(extent)?);
            parts.blocks.put(
                |block| block.push(&record).is_ok(),
                |last, next| last.set_next(Some(next)),
            )?;
            parts.extents += 1;
            parts.pages += u64::from(extent.pages());
        }
        Ok(parts)
    }

    fn journal(file: u64) -> Result<FileJournal> {
        FileJournal::new(file)
    }

    fn write(
        header: &mut Block,
        attributes: &Attributes,
        parts: &ExtentBlocks,
        late: Option<Phys>,
    ) -> Result {
        let (uid, gid) = attributes.owner.ok_or(EINVAL)?;

        *MemfdHeader::of_mut(header).ok_or(EINVAL)? = MemfdHeader::new(&layout::Memfd {
            pos: attributes.position,
            size: attributes.size,
            seals: attributes.seals,
            open: attributes.open,
            mode: attributes.mode,
            uid,
            gid,
            name: attributes.name,
            nr_extents: parts.extents,
            nr_pages: parts.pages,
            extents: parts.blocks.first()?,
            late,
            poisoned: attributes.poisoned,
        });
        Ok(())
    }

    fn read(header: &Block) -> Result<(Attributes, ExtentList)> {
        let header = MemfdHeader::of(header).ok_or(EINVAL)?;
        let memfd = header.parse().map_err(bad_header)?;
        let attributes = Attributes {
            position: memfd.pos,
            size: memfd.size,
            seals: memfd.seals,
            mode: memfd.mode,
            owner: Some((memfd.uid, memfd.gid)),
            open: memfd.open,
            name: memfd.name,
            poisoned: memfd.poisoned,
        };
        attributes.expect_readable()?;
        Ok((attributes, ExtentList::of(&memfd)))
    }

    fn late(list: &ExtentList) -> Option<Phys> {
        list.late
    }

    fn summarize(header: &Block, to: &mut dyn fmt::Write) -> Result {
        let header = MemfdHeader::of(header).ok_or(EINVAL)?;
        let memfd = header.parse().map_err(|_| EINVAL)?;

        Ok(write!(
            to,
            "size {}, {} pages, {} extents",
            memfd.size, memfd.nr_pages, memfd.nr_extents
        )?)
    }

    fn read_list(header: &Block) -> Result<ExtentList> {
        let mut header = *MemfdHeader::of(header).ok_or(EINVAL)?;

        header.set_pos(0);
        header.set_seals(0);
        header.set_owner(0, 0, 0);
        header
            .parse()
            .map(|memfd| ExtentList::of(&memfd))
            .map_err(bad_header)
    }

    fn walk<M: Memory<Error = Error>>(
        mem: &M,
        list: &ExtentList,
        mut visit: impl FnMut(&Part) -> Result,
    ) -> Result {
        // Full blocks, except perhaps for the last.
        let blocks = usize::try_from(list.extents)?.div_ceil(Block::capacity::<ExtentRecord>());
        let mut check = list.check.clone();

        chain::walk(mem, list.first, blocks, |_, record: &ExtentRecord| {
            let extent = check.check(record).map_err(malformed)?;
            visit(&Part::of(&extent)?)
        })
        .map_err(|e| match e.fault {
            Fault::Visit(cause) | Fault::Memory(cause) => cause,
            _ => malformed(e),
        })?;
        check.finish().map_err(malformed)
    }
}

/// `memfd-v2`: the layout of the C handler.
struct FoliosV2;

/// The folios of a memfd, in pages that the C handler sees as one array.
struct FolioPages {
    pages: Pages,
    /// The list of these pages, as KHO makes it for an array.
    chunks: Pages,
    folios: u64,
}

impl FolioPages {
    /// Adds a folio, which is to be at `slot` of its page.
    fn push(&mut self, slot: usize, folio: FolioV2) -> Result {
        if slot == 0 {
            let page = self.pages.add()?;
            self.chunks.put(
                |block| Chunk::of_mut(block).is_some_and(|chunk| chunk.push(page).is_ok()),
                |last, next| {
                    if let Some(chunk) = Chunk::of_mut(last) {
                        chunk.set_next(Some(next));
                    }
                },
            )?;
        }

        let slots = self.pages.last().map(FolioV2::in_page_mut);
        *slots.and_then(|slots| slots.get_mut(slot)).ok_or(EINVAL)? = folio;
        self.folios += 1;
        Ok(())
    }

    fn area(&self) -> Result<Option<Area>> {
        let Some(first) = self.chunks.first()? else {
            return Ok(None);
        };
        Ok(Some(Area {
            first,
            pages: u32::try_from(self.pages.len())?,
            flags: vmalloc::FLAG_ALLOC,
            order: 0,
        }))
    }
}

impl Layout for FoliosV2 {
    const COMPATIBLE: &'static CStr = layout::COMPATIBLE_V2;
    const RUNS: bool = false;

    type Parts = FolioPages;
    type List = FoundV2;

    fn wanted() -> bool {
        prefer_v2()
    }

    fn check(attributes: &Attributes) -> Result {
        // The C handler would read what is in the page.
        if attributes.poisoned {
            return Err(EHWPOISON);
        }
        // It would come back open for both.
        if attributes.open.bits() & READ_WRITE != READ_WRITE {
            return Err(EOPNOTSUPP);
        }
        // The C handler takes no larger ones.
        match u32::try_from(pages_of(attributes.size)) {
            Ok(_) => Ok(()),
            Err(_) => Err(EFBIG),
        }
    }

    fn list(extents: &[PinnedExtent]) -> Result<FolioPages> {
        const FLAGS: FolioFlags = FolioFlags {
            dirty: true,
            uptodate: true,
        };

        let mut parts = FolioPages {
            pages: Pages::new(),
            chunks: Pages::new(),
            folios: 0,
        };

        for (extent, slot) in extents.iter().zip((0..FOLIOS_PER_PAGE).cycle()) {
            let pfn = phys_of(extent.phys()?)?.pfn();
            let folio = FolioV2::new(pfn, FLAGS, extent.index()).ok_or(EINVAL)?;
            parts.push(slot, folio)?;
        }
        Ok(parts)
    }

    fn journal(_file: u64) -> Result<FileJournal> {
        Ok(FileJournal::Refused)
    }

    fn write(
        header: &mut Block,
        attributes: &Attributes,
        parts: &FolioPages,
        _late: Option<Phys>,
    ) -> Result {
        *MemfdV2::of_mut(header).ok_or(EINVAL)? = MemfdV2::new(&FoundV2 {
            pos: attributes.position,
            size: attributes.size,
            seals: attributes.seals,
            nr_folios: parts.folios,
            folios: parts.area()?,
        });
        Ok(())
    }

    fn read(header: &Block) -> Result<(Attributes, FoundV2)> {
        let header = MemfdV2::of(header).ok_or(EINVAL)?;
        let memfd = header.parse().map_err(bad_header)?;
        let attributes = Attributes {
            position: memfd.pos,
            size: memfd.size,
            seals: memfd.seals,
            mode: memfd.implied_mode(),
            owner: None,
            open: OpenFlags::from_bits(READ_WRITE).ok_or(EINVAL)?,
            name: None,
            poisoned: false,
        };
        Ok((attributes, memfd))
    }

    fn late(_list: &FoundV2) -> Option<Phys> {
        None
    }

    fn summarize(header: &Block, to: &mut dyn fmt::Write) -> Result {
        let header = MemfdV2::of(header).ok_or(EINVAL)?;
        let memfd = header.parse().map_err(|_| EINVAL)?;

        Ok(write!(
            to,
            "size {}, {} folios",
            memfd.size, memfd.nr_folios
        )?)
    }

    fn read_list(header: &Block) -> Result<FoundV2> {
        let mut header = *MemfdV2::of(header).ok_or(EINVAL)?;

        header.set_pos(0);
        header.set_seals(0);
        header.parse().map_err(bad_header)
    }

    fn walk<M: Memory<Error = Error>>(
        mem: &M,
        list: &FoundV2,
        mut visit: impl FnMut(&Part) -> Result,
    ) -> Result {
        let Some(area) = &list.folios else {
            return Ok(());
        };
        if area.order != 0 {
            malformed("memfd: the folios are listed in huge pages");
            return Err(EOPNOTSUPP);
        }

        let mut check = FolioCheckV2::new(list);
        let mut left = usize::try_from(list.nr_folios)?;

        vmalloc::walk(mem, area, |at| {
            let page = mem.page(at)?;
            for record in FolioV2::in_page(&page).iter().take(left) {
                left -= 1;
                let Some(folio) = check.check(record).map_err(malformed)? else {
                    continue;
                };

                // How large it is, only KHO knows. If it is not there, the visitor will see.
                let start = address(folio.start)?;
                let pages = kho::preserved_size(start).unwrap_or(PAGE_SIZE) >> PAGE_SHIFT;
                check.restored(&folio, pages as u64).map_err(malformed)?;
                visit(&Part {
                    start,
                    index: folio.index,
                    pages,
                    folio: true,
                    uptodate: folio.flags.uptodate,
                })?;
            }
            Ok(())
        })
        .map_err(|e| match e {
            ListError::Memory { cause, .. } => cause,
            ListError::Format(e) => malformed(e),
        })
    }
}
