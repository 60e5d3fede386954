// SPDX-License-Identifier: GPL-2.0

//! The kexec: everything is frozen, written down, and handed over, or the kexec is refused.

use kernel::{
    kho::KexecLock,
    liveupdate::Rebooting,
    prelude::*,
    time::{
        Instant,
        Monotonic, //
    }, //
};

use super::{
    handover::Handover,
    orchestrator::{
        luo,
        Luo, //
    },
    outgoing_format,
    status::{
        self,
        micros_since, //
    }, //
};
use crate::{
    abi::{
        root::Extras,
        stamp::{
            PhaseTimes,
            Stamp, //
        },
        Root, //
    },
    luo_session::Serialized,
    records::{
        chain,
        format, //
    }, //
};

/// Hands everything over to the next kernel.
///
/// # Errors
///
/// What a driver or a subsystem returns; [`EOPNOTSUPP`] if the next kernel would find nothing of
/// what is preserved; those of [`KexecLock::check_image`]. Nothing has changed then, except that
/// subsystems which refuse at the last moment are cancelled.
pub(crate) fn reboot(kexec: &KexecLock<'_>) -> Result {
    let _rebooting = Rebooting::begin(kexec);
    let checked = kexec.check_image();
    let Some(luo) = luo() else {
        return checked.map_err(|(e, why)| {
            pr_err!("kexec refused: {}\n", why);
            e
        });
    };
    let stamp = status::now();
    let begin = Instant::<Monotonic>::now();

    luo.context.refusal.clear();
    let result = match checked {
        Ok(()) if kexec.image_finds_preserved_memory() => {
            outgoing_format::follow_image(luo, kexec).and_then(|()| hand_over(luo, stamp, begin))
        }
        Ok(()) => hand_nothing_over(luo, reason_of_nothing(kexec)),
        Err((e, why)) => {
            luo.context.refusal.report(fmt!("{}", why));
            Err(e)
        }
    };
    result.inspect_err(|e| {
        luo.context.refusal.refused(*e);
        // Closes of sessions may have been deferred.
        luo.context.sessions_ended();
    })
}

/// Checks that a kexec which hands nothing over loses nothing. Else reports what would be lost, and
/// the reason.
///
/// # Errors
///
/// [`EOPNOTSUPP`].
fn expect_nothing_preserved(luo: &Luo, reason: &str) -> Result {
    let status = &luo.context.status;
    let sessions = status.outgoing.sessions() + status.incoming.sessions();
    let subsystems = luo.context.subsystems.outgoing();

    if sessions + subsystems == 0 {
        return Ok(());
    }
    luo.context.refusal.report(fmt!(
        "{} sessions and {} subsystems would be lost: {}",
        sessions,
        subsystems,
        reason,
    ));
    Err(EOPNOTSUPP)
}

fn serialize(luo: &'static Luo) -> Result<Serialized> {
    Serialized::new(&luo.outgoing, &luo.incoming, &luo.context.refusal)
}

/// Why the next kernel would find nothing.
fn reason_of_nothing(kexec: &KexecLock<'_>) -> &'static str {
    match kexec.image_has_other_page_size() {
        true => "the image has another page size, and cannot keep them",
        false => "load the image by kexec_file_load",
    }
}

/// Lets a kexec go ahead whose kernel finds nothing, if nothing is preserved.
fn hand_nothing_over(luo: &'static Luo, reason: &str) -> Result {
    // First, so that nothing can be preserved afterwards.
    let serialized = serialize(luo);

    expect_nothing_preserved(luo, reason)?;
    serialized?.commit();
    Ok(())
}

fn hand_over(luo: &'static Luo, stamp: Option<Stamp>, begin: Instant<Monotonic>) -> Result {
    let mut prepared = luo.context.subsystems.prepare_for_kexec()?;
    let mut slot = luo.handover.lock();
    if slot.is_none() {
        // There was no memory at boot, or an earlier kexec that handed nothing over failed.
        *slot = Handover::new().ok();
    }
    let Some(handover) = &mut *slot else {
        return expect_nothing_preserved(luo, "there is no memory for the handover");
    };

    let freeze = Instant::<Monotonic>::now();
    let serialized = serialize(luo)?;
    let freeze = micros_since(freeze);
    let write = Instant::<Monotonic>::now();
    let flbs = luo.flbs.write(&mut handover.flbs)?;
    let subsystems = prepared.reboot()?;
    let format = format::outgoing();
    if !format.has_subsystems {
        for subsystem in &subsystems {
            pr_warn!(
                "subsystem '{}': its state is dropped, {} has no place for it\n",
                subsystem.name,
                format.name,
            );
        }
    }
    let totals = serialized.totals();
    if totals.sessions == 0 && flbs == 0 && prepared.count() == 0 {
        // Whatever the next kernel reads, it finds no root, and nothing stays preserved.
        *slot = None;
        pr_info!("handing nothing over\n");
        serialized.commit();
        prepared.commit();
        return Ok(());
    }
    let root = Root {
        number: luo.number.saturating_add(1),
        sessions: luo.outgoing.head(),
        flbs: chain::phys(&handover.flbs).filter(|_| flbs > 0 || format.needs_flbs),
    };
    let times = || PhaseTimes {
        freeze,
        serialize: micros_since(write),
    };
    let extras = Extras {
        stamp,
        times: None,
        subsystems: &subsystems,
    };
    handover.write(&serialized, &root, extras, times)?;
    #[cfg(CONFIG_LIVEUPDATE_TEST_CORRUPT)]
    handover.corrupt(&serialized)?;
    handover.list()?;

    pr_info!(
        "handing over {} sessions with {} files and {} FLBs, {} subsystems, {} bytes of records, in {} us, liveupdate number: {}\n",
        totals.sessions,
        totals.files,
        flbs,
        subsystems.len(),
        totals.records(),
        micros_since(begin),
        root.number,
    );
    serialized.commit();
    prepared.commit();
    Ok(())
}
