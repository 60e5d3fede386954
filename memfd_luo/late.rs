// SPDX-License-Identifier: GPL-2.0

//! The list of late folios of all memfds, in the layout of
//! [`abi::memfd_late`](super::abi::memfd_late).
//!
//! Below the handlers of memfds. A file that has holes when it is frozen refers to the list by a
//! [`FileJournal`]; the folios that are inserted later are listed under what is handed over for the
//! file. [`of_file`] tells the next kernel which they are.
//!
//! # Locks
//!
//! The two mutexes here, of the outgoing list and of the incoming ones, are innermost: the first
//! one is locked by page faults. A record in its place is written without any lock, by the only
//! owner of the place.

use kernel::{
    crc32c::crc32c,
    kho::{
        self,
        PhysAddr,
        PreservedWords,
        Restored, //
    },
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    shmem::{
        Journal,
        PinnedExtent, //
    },
    sync::{
        atomic::{
            Relaxed,
            Release, //
        },
        static_mutex,
        Arc,
        StaticMutex, //
    }, //
};

use super::{
    abi::{
        extent::Extent,
        memfd_late::{
            record_word,
            Late,
            LatePage,
            LateRecord,
            FILES_WORD,
            MAGIC,
            NEXT_WORD,
            RECORDS,
            RECORD_WORDS, //
        },
        Phys, //
    },
    report::{
        address,
        extent_of,
        phys_of, //
    }, //
};

static OUTGOING: StaticMutex<OutgoingList> = static_mutex!(
    OutgoingList {
        pages: KVec::new(),
        used: 0,
        files: 0,
    },
    "memfd_luo::late::OUTGOING"
);

/// The incoming lists that were read, by the address of their first page.
static INCOMING: StaticMutex<RBTree<u64, IncomingList>> =
    static_mutex!(RBTree::new(), "memfd_luo::late::INCOMING");

/// The list for the next kernel.
struct OutgoingList {
    pages: KVec<Arc<PreservedWords>>,
    /// How many places of the last page have been given away.
    used: usize,
    /// How many files refer to the list. It is empty when there is none.
    files: u64,
}

impl OutgoingList {
    /// Counts one more file that refers to the list. Returns the address of its first page.
    fn add_file(&mut self) -> Result<Phys> {
        if self.pages.is_empty() {
            self.add_page()?;
        }
        let first = self.pages.first().ok_or(EINVAL)?;
        let phys = phys_of(first.phys())?;

        self.files += 1;
        store(first, FILES_WORD, self.files)?;
        Ok(phys)
    }

    fn remove_file(&mut self) {
        self.files -= 1;
        match self.files {
            // Folios that are just being given up may still have places, and so keep their page.
            0 => self.pages = KVec::new(),
            files => {
                if let Some(first) = self.pages.first() {
                    let _ = store(first, FILES_WORD, files);
                }
            }
        }
    }

    /// Adds an empty page.
    fn add_page(&mut self) -> Result {
        let page = Arc::new(PreservedWords::new()?, GFP_KERNEL)?;
        store(&page, 0, MAGIC)?;
        self.pages.reserve(1, GFP_KERNEL)?;

        if let Some(last) = self.pages.last() {
            let next = phys_of(page.phys())?.get();
            // Pairs with the stop of the processors: the next kernel sees a page that is linked
            // with its magic number.
            last.get(NEXT_WORD).ok_or(EINVAL)?.store(next, Release);
        }
        self.pages.push(page, GFP_KERNEL)?;
        self.used = 0;
        Ok(())
    }

    /// Hands out the next place.
    fn place(&mut self) -> Result<(Arc<PreservedWords>, usize)> {
        if self.used == RECORDS {
            self.add_page()?;
        }
        let page = self.pages.last().ok_or(EINVAL)?.clone();
        let place = (page, self.used);

        self.used += 1;
        Ok(place)
    }
}

fn store(page: &PreservedWords, word: usize, value: u64) -> Result {
    page.get(word).ok_or(EINVAL)?.store(value, Relaxed);
    Ok(())
}

/// Where the late folios of one file are listed. Dropping it ends that.
pub(super) enum FileJournal {
    /// Under what is handed over for the file.
    Listed {
        file: u64,
        /// The first page of the list.
        list: Phys,
    },
    /// Nowhere: the layout of the file has no place for them, so none can be inserted.
    Refused,
}

impl FileJournal {
    /// Refers to the list, for the file for which `file` is handed over.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new(file: u64) -> Result<Self> {
        let list = OUTGOING.lock().add_file()?;

        Ok(Self::Listed { file, list })
    }

    /// The first page of the list.
    pub(super) fn list(&self) -> Option<Phys> {
        match self {
            Self::Listed { list, .. } => Some(*list),
            Self::Refused => None,
        }
    }
}

impl Drop for FileJournal {
    fn drop(&mut self) {
        if let Self::Listed { .. } = self {
            OUTGOING.lock().remove_file();
        }
    }
}

impl Journal for FileJournal {
    type Entry = Place;

    fn reserve(&self, folio: &PinnedExtent) -> Result<Place> {
        let Self::Listed { file, .. } = self else {
            return Err(EBUSY);
        };
        let late = Late {
            file: *file,
            extent: extent_of(folio)?,
        };
        let (page, index) = OUTGOING.lock().place()?;

        Ok(Place {
            record: LateRecord::new(&late, crc32c),
            page,
            index,
        })
    }

    fn commit(place: &Place) {
        place.write(place.record.words());
    }
}

/// The place of a record. Dropping it takes the record out; the place stays empty.
pub(super) struct Place {
    page: Arc<PreservedWords>,
    index: usize,
    record: LateRecord,
}

impl Place {
    /// Writes the record, the word last that says that it is there.
    fn write(&self, words: [u64; RECORD_WORDS]) {
        let Some(first) = record_word(self.index) else {
            return;
        };
        for (word, value) in (first..).zip(words) {
            if let Some(word) = self.page.get(word) {
                // Pairs with the stop of the processors: if the next kernel sees the last word, it
                // sees the others.
                word.store(value, Release);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let last = record_word(self.index).and_then(|first| first.checked_add(RECORD_WORDS - 1));

        if let Some(word) = last.and_then(|last| self.page.get(last)) {
            word.store(0, Release);
        }
    }
}

/// A list that the previous kernel left. Its pages are only claimed to free them.
struct IncomingList {
    /// By file and index.
    records: KVVec<Late>,
    /// Whether records are corrupt, and it is not known of which files.
    corrupt: bool,
    /// How many files that refer to the list are not finished.
    files: u64,
    pages: KVec<PhysAddr>,
}

impl IncomingList {
    /// Reads the list that begins at `first`.
    fn read(first: Phys) -> Result<Self> {
        let mut list = Self {
            records: KVVec::new(),
            corrupt: false,
            files: 0,
            pages: KVec::new(),
        };
        let (mut next, mut seen) = (Some(first), first);

        while let Some(phys) = next {
            let count = list.pages.len();
            if count > 0 && phys == seen {
                list.corrupt = true;
                break;
            }
            // Brent's algorithm: a circle comes by here again.
            if count.is_power_of_two() {
                seen = phys;
            }
            next = match list.read_page(address(phys)?) {
                Err(ENOMEM) => return Err(ENOMEM),
                Err(_) => {
                    list.corrupt = true;
                    None
                }
                Ok(next) => next,
            };
        }

        if list.corrupt {
            pr_err!("memfd: the list of late folios at {:?} is corrupt\n", first);
        }
        list.records
            .sort_unstable_by_key(|late| (late.file, late.extent.index));
        Ok(list)
    }

    fn read_page(&mut self, at: PhysAddr) -> Result<Option<Phys>> {
        let page: KBox<LatePage> = kho::copy_of(at)?;
        let next = page.next().map_err(|_| EINVAL)?;

        if self.pages.is_empty() {
            self.files = page.files();
        }
        self.pages.push(at, GFP_KERNEL)?;
        for record in page.records() {
            match record.parse(crc32c) {
                Ok(Some(late)) => self.records.push(late, GFP_KERNEL)?,
                Ok(None) => {}
                Err(_) => self.corrupt = true,
            }
        }
        Ok(next)
    }

    fn free(&self) {
        for at in &self.pages {
            drop(Restored::<LatePage>::claim(*at));
        }
    }
}

/// The late folios of the file for which `file` was handed over, in the order of the file.
///
/// # Errors
///
/// - [`EUCLEAN`] if the list at `list` is corrupt, and so may lack some.
/// - [`ENOMEM`].
pub(super) fn of_file(list: Phys, file: u64) -> Result<KVec<Extent>> {
    let mut lists = INCOMING.lock();
    if lists.get(&list.get()).is_none() {
        let node = RBTreeNodeReservation::new(GFP_KERNEL)?;
        lists.insert(node.into_node(list.get(), IncomingList::read(list)?));
    }
    let list = lists.get(&list.get()).ok_or(EINVAL)?;
    if list.corrupt {
        return Err(EUCLEAN);
    }

    let mut extents = KVec::new();
    let first = list.records.partition_point(|late| late.file < file);
    for late in list
        .records
        .iter()
        .skip(first)
        .take_while(|late| late.file == file)
    {
        extents.push(late.extent, GFP_KERNEL)?;
    }
    Ok(extents)
}

/// A file that refers to the list at `list` is finished. With the last one the list goes.
pub(super) fn finished(list: Phys) {
    let mut lists = INCOMING.lock();
    let Some(found) = lists.get_mut(&list.get()) else {
        return;
    };

    found.files = found.files.saturating_sub(1);
    if found.files == 0 {
        found.free();
        lists.remove(&list.get());
    }
}
