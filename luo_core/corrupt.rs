// SPDX-License-Identifier: GPL-2.0

//! For tests: corrupts what is handed over right before the kexec.
//!
//! Only built with `CONFIG_LIVEUPDATE_TEST_CORRUPT`. The parameter `liveupdate.corrupt=` says what
//! to do:
//!
//! ```text
//!  seed:N,count:M           M bytes anywhere, chosen by the seed N
//!  REGION:OFFSET:VALUE      one byte of root, sessions, files, flbs, checks, or of what the
//!                           handlers of memfds left: memfds, extents, slots, slot-pages, huge
//! ```
//!
//! A region consists of what is used of its pages, one after the other. Each change
//! is logged.

use core::str::FromStr;

use kernel::{
    prelude::*,
    sync::SetOnce, //
};

/// What the command line says.
static PLAN: SetOnce<Plan> = SetOnce::new();

/// What to corrupt.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) enum Region {
    Root,
    Sessions,
    Files,
    Flbs,
    Checks,
    Memfds,
    Extents,
    Slots,
    SlotPages,
    Huge,
}

impl Region {
    const ALL: [(Self, &'static str); 10] = [
        (Self::Root, "root"),
        (Self::Sessions, "sessions"),
        (Self::Files, "files"),
        (Self::Flbs, "flbs"),
        (Self::Checks, "checks"),
        (Self::Memfds, "memfds"),
        (Self::Extents, "extents"),
        (Self::Slots, "slots"),
        (Self::SlotPages, "slot-pages"),
        (Self::Huge, "huge"),
    ];

    fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(region, _)| *region == self);
        found.map_or("", |(_, name)| name)
    }
}

#[derive(Copy, Clone)]
enum Plan {
    Random {
        seed: u64,
        count: u64,
    },
    Byte {
        region: Region,
        offset: usize,
        value: u8,
    },
}

/// Reads the parameter `liveupdate.corrupt=`.
pub(crate) fn parse_parameter(value: &CStr) -> Result {
    let text = value.to_str().map_err(|_| EINVAL)?;

    PLAN.populate(parse(text).ok_or(EINVAL)?);
    Ok(())
}

fn parse(text: &str) -> Option<Plan> {
    if let Some(numbers) = text.strip_prefix("seed:") {
        let (seed, count) = numbers.split_once(",count:")?;
        return Some(Plan::Random {
            seed: u64::from_str(seed).ok()?,
            count: u64::from_str(count).ok()?,
        });
    }

    let (region, place) = text.split_once(':')?;
    let (offset, value) = place.split_once(':')?;
    let (region, _) = Region::ALL.iter().find(|(_, name)| *name == region)?;
    Some(Plan::Byte {
        region: *region,
        offset: usize::from_str(offset).ok()?,
        value: u8::from_str(value).ok()?,
    })
}

/// Does what the command line says.
///
/// `visit` shows all pieces of the state to a function, in the same order each time.
pub(crate) fn corrupt(mut visit: impl FnMut(&mut dyn FnMut(Region, &mut [u8]))) {
    match PLAN.as_ref() {
        None => {}
        Some(Plan::Byte {
            region,
            offset,
            value,
        }) => change(&mut visit, Some(*region), *offset, |old| match *value {
            // An address may have it there by chance.
            same if same == old => !old,
            value => value,
        }),
        Some(Plan::Random { seed, count }) => {
            // Lossless: no kernel has wider sizes.
            let mut total = 0_u64;
            visit(&mut |_, bytes| total += bytes.len() as u64);

            let mut random = *seed;
            for _ in 0..*count {
                let offset = next(&mut random) % total.max(1);
                let flip = next(&mut random).to_le_bytes()[0].max(1);
                let offset = usize::try_from(offset).unwrap_or(usize::MAX);
                change(&mut visit, None, offset, |byte| byte ^ flip);
            }
        }
    }
}

/// Changes the byte at `offset` of one region, or of all.
fn change(
    visit: &mut impl FnMut(&mut dyn FnMut(Region, &mut [u8])),
    wanted: Option<Region>,
    offset: usize,
    new: impl Fn(u8) -> u8,
) {
    // What has been passed, altogether and in the region at hand.
    let mut passed = 0;
    let mut in_region = (Region::Root, 0);

    visit(&mut |region, bytes| {
        if in_region.0 != region {
            in_region = (region, 0);
        }
        let before = in_region.1;
        in_region.1 += bytes.len();
        if wanted.is_some_and(|wanted| wanted != region) {
            return;
        }

        let here = offset.checked_sub(passed);
        passed += bytes.len();
        if let Some((at, byte)) = here.and_then(|at| Some((at, bytes.get_mut(at)?))) {
            let old = *byte;
            *byte = new(old);
            pr_info!(
                "corrupted: {} {}: {:#04x} -> {:#04x}\n",
                region.name(),
                before + at,
                old,
                *byte,
            );
        }
    });
}

/// The next number of a sequence (SplitMix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
