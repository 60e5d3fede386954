/* SPDX-License-Identifier: GPL-2.0 */
#ifndef LINUX_KEXEC_HANDOVER_PAGES_H
#define LINUX_KEXEC_HANDOVER_PAGES_H

#include <linux/kexec_handover.h>

/* The FDT property for the page size of the kernel that hands over. */
#define KHO_FDT_PAGE_SIZE_PROP_NAME "page-size"

/* The note of an image that keeps what it cannot use. */
#define KHO_KEEPS_OTHER_PAGES "keeps other-page-size"

int kho_note_page_size(const void *fdt);
void kho_reserve_other_pages(phys_addr_t fdt, phys_addr_t map);
bool kho_image_takes_over(const struct kimage *image);

#endif /* LINUX_KEXEC_HANDOVER_PAGES_H */
