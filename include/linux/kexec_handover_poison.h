/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_KEXEC_HANDOVER_POISON_H
#define _LINUX_KEXEC_HANDOVER_POISON_H

#include <linux/init.h>
#include <linux/types.h>

#if defined(CONFIG_KEXEC_HANDOVER) && defined(CONFIG_MEMORY_FAILURE)

void kho_page_poisoned(unsigned long pfn);
void kho_page_unpoisoned(unsigned long pfn);
bool kho_poison_complete(void);
bool kho_poisoned(phys_addr_t phys, u64 size);
void __init kho_poison_reserve(void);

#else

static inline void kho_page_poisoned(unsigned long pfn) { }
static inline void kho_page_unpoisoned(unsigned long pfn) { }

static inline bool kho_poison_complete(void)
{
	return true;
}

static inline bool kho_poisoned(phys_addr_t phys, u64 size)
{
	return false;
}

static inline void kho_poison_reserve(void) { }

#endif

#endif /* _LINUX_KEXEC_HANDOVER_POISON_H */
