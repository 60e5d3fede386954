// SPDX-License-Identifier: GPL-2.0

//! Checksums of the records that are handed over: calculated at the kexec, verified early in boot.
//!
//! [`abi::check`](crate::abi::check) says which checksum is calculated over what. They are
//! calculated last, when the records do not change any more. If there is no memory for them, the
//! kexec goes ahead without.

use kernel::{
    crc32c::crc32c,
    kho::{
        self,
        Preserved,
        Restored, //
    },
    prelude::*, //
};

use crate::{
    abi::{
        block::Record,
        check::{
            self,
            CheckPage,
            Checks,
            Span,
            Table,
            CHECKS_PER_PAGE, //
        },
        flb::{
            FlbBlock,
            FlbRecord, //
        },
        root::{
            RootChecks,
            MAX_CHECK_PAGES, //
        },
        session::{
            FileRecord,
            SessionRecord, //
        },
        Block, //
    },
    records::chain::Chain, //
};

/// The checks for the next kernel.
///
/// # Invariants
///
/// `addresses` are those of `pages`, of which the first `len` entries are used. `links` has an
/// entry for each session whose files have been checked.
pub(crate) struct OutgoingChecks {
    pages: KVec<Preserved<CheckPage>>,
    addresses: KVec<[u8; size_of::<u64>()]>,
    len: usize,
    links: KVec<u32>,
    sessions: Span,
    flbs: Span,
}

impl OutgoingChecks {
    pub(crate) fn new() -> Self {
        // INVARIANT: All are empty.
        Self {
            pages: KVec::new(),
            addresses: KVec::new(),
            len: 0,
            links: KVec::new(),
            sessions: Span::default(),
            flbs: Span::default(),
        }
    }

    /// Adds the files of the session that is next in the chain of sessions.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], and [`ENOSPC`] if there are more checks than a root can list; also in the other
    /// methods.
    pub(crate) fn add_files(&mut self, files: &Chain<FileRecord>) -> Result {
        // INVARIANT: The entry of this session.
        self.links.push(u32::try_from(self.len)?, GFP_KERNEL)?;
        self.add_chain(files, &KVec::new()).map(|_| ())
    }

    /// Adds the sessions, after the files of all of them.
    pub(crate) fn add_sessions(&mut self, sessions: &Chain<SessionRecord>) -> Result {
        let links = core::mem::replace(&mut self.links, KVec::new());

        self.sessions = self.add_chain(sessions, &links)?;
        Ok(())
    }

    /// Adds the FLBs.
    pub(crate) fn add_flbs(&mut self, flbs: &FlbBlock) -> Result {
        let block = flbs.as_block().ok_or(EINVAL)?;

        self.flbs = Span {
            count: block.raw_count(),
            first: self.len as u64,
        };
        self.add_block::<FlbRecord>(block, &mut core::iter::empty())
    }

    /// What the root says of them.
    pub(crate) fn of_root(&self) -> RootChecks<'_> {
        RootChecks {
            sessions: self.sessions,
            flbs: self.flbs,
            pages: &self.addresses,
        }
    }

    /// Shows the table to a function that corrupts it.
    #[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
    pub(crate) fn each_used(&mut self, mut visit: impl FnMut(&mut [u8])) {
        let mut left = self.len * size_of::<u32>();

        for page in &mut self.pages {
            let used = left.min(size_of::<CheckPage>());
            left -= used;
            if let Some(bytes) = page.as_mut_bytes().get_mut(..used) {
                visit(bytes);
            }
        }
    }

    fn add_chain<R: Record>(&mut self, chain: &Chain<R>, links: &[u32]) -> Result<Span> {
        let span = Span {
            count: chain.len() as u64,
            first: self.len as u64,
        };
        let mut links = links.iter().copied();

        for block in chain.blocks() {
            self.add_block::<R>(block, &mut links)?;
        }
        Ok(span)
    }

    fn add_block<R: Record>(
        &mut self,
        block: &Block,
        links: &mut impl Iterator<Item = u32>,
    ) -> Result {
        check::write::<R, Error>(crc32c, block, links, |check| self.push(check))
    }

    fn push(&mut self, check: u32) -> Result {
        if self.len == self.pages.len() * CHECKS_PER_PAGE {
            if self.pages.len() == MAX_CHECK_PAGES {
                return Err(ENOSPC);
            }
            let page = Preserved::<CheckPage>::new()?;

            // INVARIANT: Both get one more, or none.
            self.pages.reserve(1, GFP_KERNEL)?;
            self.addresses
                .push(page.phys().get().to_ne_bytes(), GFP_KERNEL)?;
            self.pages.push(page, GFP_KERNEL)?;
        }

        let (page, index) = (self.len / CHECKS_PER_PAGE, self.len % CHECKS_PER_PAGE);
        let entry = self.pages.get_mut(page).and_then(|p| p.get_mut(index));
        *entry.ok_or(ENOSPC)? = check;
        self.len += 1;
        Ok(())
    }
}

/// The checks that the previous kernel left.
pub(crate) struct IncomingChecks {
    checks: Checks<CheckPages>,
    sessions: Span,
    flbs: Span,
}

/// The pages of the table, claimed.
struct CheckPages(KVec<Restored<CheckPage>>);

impl Table for CheckPages {
    fn get(&self, index: u64) -> Option<u32> {
        let index = usize::try_from(index).ok()?;
        let page = self.0.get(index / CHECKS_PER_PAGE)?;

        page.get(index % CHECKS_PER_PAGE).copied()
    }
}

/// A table of checks, and where in it those of some records stand.
pub(crate) type SpannedChecks<'a> = (&'a IncomingChecks, Span);

impl IncomingChecks {
    /// Claims the pages that a root lists.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if one is not there; that has been reported. [`ENOMEM`].
    pub(crate) fn claim(root: &RootChecks<'_>) -> Result<Self> {
        let mut pages = KVec::with_capacity(root.pages.len(), GFP_KERNEL)?;

        for at in root.addresses() {
            let at = at.and_then(|at| kho::PhysAddr::new(at.get())).ok_or(EINVAL);
            let page = at.and_then(Restored::claim).inspect_err(|e| {
                pr_err!("incoming checks: no preserved page at {:?}: {:?}\n", at, e)
            })?;
            pages.push(page, GFP_KERNEL)?;
        }
        Ok(Self {
            checks: Checks::new(CheckPages(pages), crc32c),
            sessions: root.sessions,
            flbs: root.flbs,
        })
    }

    /// With the place of the sessions' checks.
    pub(crate) fn sessions(&self) -> SpannedChecks<'_> {
        (self, self.sessions)
    }

    /// With the place of the FLBs' checks.
    pub(crate) fn flbs(&self) -> SpannedChecks<'_> {
        (self, self.flbs)
    }

    /// With the place of the checks of the files of a session, which was found to be whole.
    pub(crate) fn files(&self, session: u64, count: u64) -> Result<SpannedChecks<'_>> {
        let first = self
            .checks
            .link::<SessionRecord>(self.sessions, session)
            .ok_or(EINVAL)?;

        Ok((self, Span { count, first }))
    }

    /// The checks.
    pub(crate) fn checks(&self) -> &Checks<impl Table> {
        &self.checks
    }
}
