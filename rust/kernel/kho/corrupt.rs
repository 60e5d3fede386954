// SPDX-License-Identifier: GPL-2.0

//! For tests: changes to memory that is handed over, of any owner.

use super::PhysAddr;
use crate::{
    bindings,
    page::PAGE_SIZE,
    prelude::*, //
};

/// Passes a copy of `size` bytes that this kernel preserved at `at` to `change`; writes it back.
///
/// Only for tests that corrupt what the next kernel reads, right before the kexec: nothing is said
/// about what the memory is, nor about who changes it at the same time.
///
/// # Errors
///
/// - [`EINVAL`] if the bytes are not in one page of memory, or it is more than that.
/// - [`ENOMEM`].
pub fn change_outgoing(at: PhysAddr, size: usize, change: &mut dyn FnMut(&mut [u8])) -> Result {
    let mut copy = KVec::from_elem(0_u8, size, GFP_KERNEL)?;
    let offset = usize::try_from(at.get())? % PAGE_SIZE;
    // SAFETY: The function takes any number.
    let is_memory = unsafe { bindings::pfn_valid(usize::try_from(at.get())? / PAGE_SIZE) };

    if offset.checked_add(size).is_none_or(|end| end > PAGE_SIZE) || !is_memory {
        return Err(EINVAL);
    }
    // SAFETY: The bytes are in one page, which is there, and in the direct map as all memory that
    // is preserved. The copy has that size.
    unsafe {
        let from = bindings::phys_to_virt(at.get());
        bindings::memcpy(copy.as_mut_ptr().cast(), from, size);
    }
    change(&mut copy);
    // SAFETY: As above. Those who own the memory read it as bytes that may be anything.
    unsafe {
        let to = bindings::phys_to_virt(at.get());
        bindings::memcpy(to, copy.as_ptr().cast(), size);
    }
    Ok(())
}
