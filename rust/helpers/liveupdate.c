// SPDX-License-Identifier: GPL-2.0

/*
 * Helpers for the live update abstractions: macros and inline functions of
 * Kexec Handover, the page allocator and the module loader that Rust cannot
 * call by itself.
 */

#include <linux/io.h>
#include <linux/kexec.h>
#include <linux/kexec_handover.h>
#include <linux/kexec_handover_poison.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/timekeeping.h>
#ifdef CONFIG_X86_TSC
#include <asm/msr.h>
#include <asm/tsc.h>
#endif

#include "../../kernel/kexec_internal.h"

#ifdef CONFIG_LIVEUPDATE

__rust_helper phys_addr_t rust_helper_virt_to_phys(void *address)
{
	return virt_to_phys(address);
}

__rust_helper void *rust_helper_phys_to_virt(phys_addr_t address)
{
	return phys_to_virt(address);
}

__rust_helper bool rust_helper_pfn_valid(unsigned long pfn)
{
	return pfn_valid(pfn);
}

__rust_helper unsigned long rust_helper_page_to_pfn(const struct page *page)
{
	return page_to_pfn(page);
}

__rust_helper struct folio *rust_helper_pfn_folio(unsigned long pfn)
{
	return pfn_folio(pfn);
}

__rust_helper unsigned int rust_helper_folio_order(const struct folio *folio)
{
	return folio_order(folio);
}

__rust_helper void *rust_helper_folio_address(const struct folio *folio)
{
	return folio_address(folio);
}

__rust_helper void rust_helper_folio_put(struct folio *folio)
{
	folio_put(folio);
}

__rust_helper bool rust_helper_try_module_get(struct module *module)
{
	return try_module_get(module);
}

__rust_helper void rust_helper___module_get(struct module *module)
{
	__module_get(module);
}

__rust_helper void rust_helper_module_put(struct module *module)
{
	module_put(module);
}

/* Has the current task charge to the root, and returns to whom it did before. */
__rust_helper struct mem_cgroup *rust_helper_charge_to_root(void)
{
#ifdef CONFIG_MEMCG
	return set_active_memcg(root_mem_cgroup);
#else
	return NULL;
#endif
}

__rust_helper void rust_helper_charge_to(struct mem_cgroup *memcg)
{
	set_active_memcg(memcg);
}

/*
 * Reads the clocks that run on across a kexec: the cycle counter, which only
 * x86 is known to leave alone, and the one with a battery.
 */
__rust_helper bool rust_helper_kho_read_clocks(u64 *cycles, u64 *khz, u64 *seconds)
{
#ifdef CONFIG_X86_TSC
	struct timespec64 now;

	if (!tsc_khz || check_tsc_unstable())
		return false;

	read_persistent_clock64(&now);
	*cycles = rdtsc_ordered();
	*khz = tsc_khz;
	*seconds = now.tv_sec;
	return now.tv_sec > 0;
#else
	return false;
#endif
}

/* Whether the loaded kexec image will find the memory that KHO preserved. */
__rust_helper bool rust_helper_kexec_image_has_kho(void)
{
	return kexec_image && kexec_image->kho.fdt;
}

/* Whether it gets nothing, as its pages have another size. */
__rust_helper bool rust_helper_kexec_image_has_other_page_size(void)
{
	return kexec_image && kexec_image->kho.other_page_size;
}

__rust_helper bool rust_helper_kexec_trylock(void)
{
	return kexec_trylock();
}

__rust_helper void rust_helper_kexec_unlock(void)
{
	kexec_unlock();
}

/* Both with the kexec lock held, and an image loaded. */
__rust_helper u8 rust_helper_kexec_image_format(void)
{
	return kexec_image->kho.liveupdate_format;
}

__rust_helper void rust_helper_kexec_set_image_format(u8 format)
{
	kexec_image->kho.liveupdate_format = format;
}

__rust_helper bool rust_helper_kexec_has_image(void)
{
	return kexec_image;
}

/* An inline function in kernels that do not know of poisoned pages. */
__rust_helper bool rust_helper_kho_has_poison(phys_addr_t phys, u64 size)
{
	return kho_poisoned(phys, size);
}

/* Whether it can take over what is preserved; else @why says why not. */
__rust_helper int rust_helper_kho_check_loaded_image(const char **why)
{
	return kexec_image ? kho_check_image(kexec_image, why) : 0;
}

#endif /* CONFIG_LIVEUPDATE */
