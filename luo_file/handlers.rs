// SPDX-License-Identifier: GPL-2.0

//! The file handlers that drivers have registered.
//!
//! Below files, above the views of C drivers ([`ffi::handler`](crate::ffi::handler)). There are few
//! handlers, so they are searched one by one.
//!
//! The module of a handler that incoming files need cannot be unloaded until these files are
//! finished.
//!
//! The lock is held while handlers are asked whether they accept a file, and never during any other
//! callback. The table of FLBs may be locked under it.

use core::ptr::NonNull;

use kernel::{
    bindings,
    fs::File,
    new_mutex,
    prelude::*,
    rbtree::RBTree,
    sync::{
        Arc,
        Mutex, //
    }, //
};

use crate::{
    abi::Compatible,
    ffi::{
        flb::{
            FlbId,
            RegisteredFlb, //
        },
        handler::{
            PinnedHandler,
            RegisteredHandler, //
        }, //
    },
    luo_flb::{
        FlbSet,
        Flbs, //
    }, //
};

/// All registered file handlers, in the order of their registration.
#[pin_data]
pub(crate) struct Handlers {
    #[pin]
    table: Mutex<HandlerTable>,
}

struct HandlerTable {
    entries: KVec<HandlerEntry>,
    /// How many incoming files are to be finished, by their compatible string.
    expected: RBTree<Compatible, u64>,
}

struct HandlerEntry {
    handler: RegisteredHandler,
    flbs: Arc<FlbSet>,
    /// There if and only if incoming files need the handler.
    _pinned: Option<PinnedHandler>,
}

/// The compatible string of an incoming file. As long as there is one of a handler, its module
/// stays.
pub(crate) struct Expected {
    compatible: Compatible,
    handlers: &'static Handlers,
}

impl Expected {
    pub(crate) fn compatible(&self) -> &Compatible {
        &self.compatible
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut table = self.handlers.table.lock();

        if let Some(files) = table.expected.get_mut(&self.compatible) {
            *files = files.saturating_sub(1);
            if *files > 0 {
                return;
            }
        }
        table.expected.remove(&self.compatible);
        if let Some(entry) = table.of(&self.compatible) {
            entry._pinned = None;
        }
    }
}

impl HandlerTable {
    fn of(&mut self, compatible: &Compatible) -> Option<&mut HandlerEntry> {
        self.entries
            .iter_mut()
            .find(|entry| entry.handler.compatible() == compatible)
    }
}

/// A handler that can be called, and the FLBs that its files depend on.
pub(crate) struct BoundHandler {
    pub(crate) handler: PinnedHandler,
    pub(crate) flbs: Arc<FlbSet>,
}

impl HandlerEntry {
    fn bind(&self) -> Option<BoundHandler> {
        Some(BoundHandler {
            handler: self.handler.pin()?,
            flbs: self.flbs.clone(),
        })
    }
}

impl Handlers {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            table <- new_mutex!(
                HandlerTable {
                    entries: KVec::new(),
                    expected: RBTree::new(),
                },
                "luo::Handlers"
            ),
        })
    }

    /// Registers a handler.
    ///
    /// # Errors
    ///
    /// - [`EEXIST`] if there is one with the same compatible string.
    /// - [`ENOMEM`].
    pub(crate) fn register(&self, handler: RegisteredHandler) -> Result {
        let flbs = FlbSet::empty()?;
        let mut table = self.table.lock();

        if table.of(handler.compatible()).is_some() {
            pr_err!("handler '{}' is registered already\n", handler.compatible());
            return Err(EEXIST);
        }
        let pinned = match table.expected.get(handler.compatible()) {
            Some(_) => handler.pin(),
            None => None,
        };
        table.entries.push(
            HandlerEntry {
                handler,
                flbs,
                _pinned: pinned,
            },
            GFP_KERNEL,
        )?;
        Ok(())
    }

    /// Notes that an incoming file needs the handler of that name. Called before any handler is
    /// registered.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn expect(&'static self, compatible: Compatible) -> Result<Expected> {
        let mut table = self.table.lock();

        match table.expected.get_mut(&compatible) {
            Some(files) => *files = files.saturating_add(1),
            None => {
                table
                    .expected
                    .try_create_and_insert(compatible, 1, GFP_KERNEL)?;
            }
        }
        Ok(Expected {
            compatible,
            handlers: self,
        })
    }

    /// Unregisters a handler together with its dependencies. Nothing happens if it is not there.
    pub(crate) fn unregister(
        &self,
        handler: NonNull<bindings::liveupdate_file_handler>,
        flbs: &Flbs,
    ) {
        let mut table = self.table.lock();

        table.entries.retain(|entry| {
            if !entry.handler.is(handler) {
                return true;
            }
            for flb in entry.flbs.iter() {
                flbs.unregister(flb);
            }
            false
        });
    }

    /// Makes a handler depend on an FLB.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if the handler is not registered.
    /// - [`EEXIST`] if it depends on the FLB, or another FLB of that name is registered.
    /// - [`ENOSPC`] if there are too many FLBs.
    /// - [`ENOMEM`].
    pub(crate) fn link(
        &self,
        handler: NonNull<bindings::liveupdate_file_handler>,
        flb: RegisteredFlb,
        flbs: &Flbs,
    ) -> Result {
        let mut table = self.table.lock();
        let entry = table
            .entries
            .iter_mut()
            .find(|entry| entry.handler.is(handler))
            .ok_or(EINVAL)?;

        let id = flb.get().id();
        if entry.flbs.contains(id) {
            return Err(EEXIST);
        }

        let known = flbs.register(flb)?;
        entry.flbs = entry
            .flbs
            .with(known, id)
            .inspect_err(|_| flbs.unregister(id))?;
        Ok(())
    }

    /// Takes back what [`Handlers::link`] did.
    ///
    /// # Errors
    ///
    /// [`ENOENT`] if the handler does not depend on the FLB.
    pub(crate) fn unlink(
        &self,
        handler: NonNull<bindings::liveupdate_file_handler>,
        flb: FlbId,
        flbs: &Flbs,
    ) -> Result {
        let table = self.table.lock();
        let entry = table
            .entries
            .iter()
            .find(|entry| entry.handler.is(handler) && entry.flbs.contains(flb))
            .ok_or(ENOENT)?;

        entry.flbs.end(flb);
        flbs.unregister(flb);
        Ok(())
    }

    /// The handler for a file that is to be preserved: the first that accepts it.
    ///
    /// # Errors
    ///
    /// [`ENOENT`] if there is none.
    pub(crate) fn for_file(&self, file: &File) -> Result<BoundHandler> {
        let table = self.table.lock();

        table
            .entries
            .iter()
            .filter(|entry| entry.handler.can_preserve(file))
            // One whose module is about to go cannot be bound.
            .find_map(HandlerEntry::bind)
            .ok_or(ENOENT)
    }

    /// The handler for files that were preserved under a compatible string.
    pub(crate) fn for_compatible(&self, compatible: &Compatible) -> Option<BoundHandler> {
        let mut table = self.table.lock();

        table.of(compatible).and_then(|entry| entry.bind())
    }
}

#[cfg(CONFIG_LIVEUPDATE_KUNIT_TEST)]
#[kunit_tests(luo_file_handlers)]
mod tests {
    use super::*;
    use crate::{
        luo_core::{
            kunit::CallLog,
            orchestrator::luo, //
        }, //
    };
    use kernel::{
        liveupdate::{
            AnyFlb,
            FileHandler,
            Flb,
            FlbCell,
            HandlerCell,
            Outcome,
            RetrieveError, //
        },
        sync::aref::ARef, //
    };

    /// What the FLBs were asked to do.
    static LOG: CallLog = CallLog::new();

    /// An FLB that logs `N` when it is preserved, and `N + 4` when that is undone. The one with
    /// `N` = 3 refuses.
    struct Logging<const N: u64>;

    #[vtable]
    impl<const N: u64> Flb for Logging<N> {
        const COMPATIBLE: &'static CStr = match N {
            1 => c"luo-kunit-flb-1",
            2 => c"luo-kunit-flb-2",
            _ => c"luo-kunit-flb-3",
        };
        type Handle = u64;
        type Outgoing = u64;
        type Incoming = u64;

        fn preserve() -> Result<(u64, u64)> {
            LOG.add(N);
            if N == 3 {
                return Err(ENXIO);
            }
            Ok((N, N))
        }

        fn unpreserve(object: u64, handle: u64) {
            assert!(object == N && handle == N);
            LOG.add(N + 4);
        }

        fn retrieve(_handle: u64) -> Result<u64> {
            Err(ENXIO)
        }

        fn finish(_object: u64) {}
    }

    static FIRST: FlbCell<Logging<1>> = FlbCell::new();
    static SECOND: FlbCell<Logging<2>> = FlbCell::new();
    static REFUSING: FlbCell<Logging<3>> = FlbCell::new();

    /// A handler that wants no file. `N` tells which FLBs it depends on.
    struct Idle<const N: usize>;

    #[vtable]
    impl<const N: usize> FileHandler for Idle<N> {
        const COMPATIBLE: &'static CStr = match N {
            0 => c"luo-kunit-file",
            2 => c"luo-kunit-file-2",
            _ => c"luo-kunit-file-3",
        };
        type Handle = u64;
        type State = ();

        fn flbs() -> &'static [&'static dyn AnyFlb] {
            static FLBS: [&dyn AnyFlb; 3] = [&FIRST, &SECOND, &REFUSING];
            FLBS.get(..N).unwrap_or_default()
        }

        fn can_preserve(_file: &File) -> bool {
            false
        }

        fn preserve(_file: &File) -> Result<(u64, ())> {
            Err(ENXIO)
        }

        fn unpreserve(_file: &File, _state: (), _handle: u64) {}

        fn retrieve(_handle: u64) -> Result<ARef<File>, RetrieveError<u64>> {
            Err(RetrieveError::Final(ENXIO))
        }

        fn finish(_outcome: Outcome<'_, u64>) {}
    }

    static NEEDS_NONE: HandlerCell<Idle<0>> = HandlerCell::new();
    static NEEDS_TWO: HandlerCell<Idle<2>> = HandlerCell::new();
    static NEEDS_THREE: HandlerCell<Idle<3>> = HandlerCell::new();

    fn bound<const N: usize>() -> Result<BoundHandler> {
        let name = Compatible::from_cstr(Idle::<N>::COMPATIBLE).map_err(|_| EINVAL)?;

        luo()
            .ok_or(EOPNOTSUPP)?
            .context
            .handlers
            .for_compatible(&name)
            .ok_or(ENOENT)
    }

    #[test]
    fn a_handler_is_there_while_it_is_registered() -> Result {
        assert!(bound::<0>().err() == Some(ENOENT));

        let registration = NEEDS_NONE.register()?;
        assert!(bound::<0>().is_ok());
        assert!(NEEDS_NONE.register().err() == Some(EEXIST));
        assert!(bound::<0>().is_ok());

        drop(registration);
        assert!(bound::<0>().err() == Some(ENOENT));
        assert!(NEEDS_NONE.register().is_ok());
        Ok(())
    }

    #[test]
    fn flbs_live_from_the_first_file_to_the_last() -> Result {
        let _registration = NEEDS_TWO.register()?;
        LOG.take();

        assert!(FIRST.outgoing().err() == Some(ENOENT));
        let one = bound::<2>()?.flbs.preserve()?;
        let other = bound::<2>()?.flbs.preserve()?;
        assert!(LOG.take() == 12);
        assert!(*FIRST.outgoing()? == 1 && *SECOND.outgoing()? == 2);

        drop(one);
        assert!(LOG.take() == 0);
        drop(other);
        assert!(LOG.take() == 65);
        assert!(FIRST.outgoing().err() == Some(ENOENT));
        Ok(())
    }

    #[test]
    fn a_driver_keeps_an_object_alive() -> Result {
        let _registration = NEEDS_TWO.register()?;
        LOG.take();

        let file = bound::<2>()?.flbs.preserve()?;
        let object = FIRST.outgoing()?;
        drop(file);
        assert!(LOG.take() == 126);
        assert!(*object == 1);
        drop(object);
        assert!(LOG.take() == 5);
        Ok(())
    }

    #[test]
    fn flbs_before_one_that_refuses_are_undone() -> Result {
        let _registration = NEEDS_THREE.register()?;
        LOG.take();

        assert!(bound::<3>()?.flbs.preserve().err() == Some(ENXIO));
        assert!(LOG.take() == 12365);
        assert!(FIRST.outgoing().err() == Some(ENOENT));
        Ok(())
    }
}
