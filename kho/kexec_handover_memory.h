/* SPDX-License-Identifier: GPL-2.0 */
#ifndef LINUX_KEXEC_HANDOVER_MEMORY_H
#define LINUX_KEXEC_HANDOVER_MEMORY_H

#include <linux/kexec_handover.h>

void __init kho_note_boot_memory(void);
int kho_note_cmdline(struct kimage *image);
bool kho_image_has(const struct kimage *image, phys_addr_t phys, u64 size);

/* A page that the next kernel will have. */
static inline void *kho_zeroed_page(void)
{
	struct page *page = kho_alloc_pages(GFP_KERNEL | __GFP_ZERO, 0);

	return page ? page_address(page) : NULL;
}

#endif /* LINUX_KEXEC_HANDOVER_MEMORY_H */
