// SPDX-License-Identifier: GPL-2.0

/*
 * What a kernel with another page size has handed over.
 *
 * Whatever is handed over counts in pages: KHO's tree, and the records of those
 * who preserve memory. So only a kernel with the same page size can use it. One
 * with another page size keeps it: it reserves all of the memory, hands out
 * nothing, preserves nothing itself, and passes KHO's tree on as it got it. The
 * next kernel with the right page size finds everything.
 *
 * Each kernel says its page size in its FDT. That no kernel gets what it would
 * misread is the business of the one before: an Image of arm64 tells its page
 * size, and a note in it says that it can keep what it cannot use.
 */

#define pr_fmt(fmt) "KHO: " fmt

#include <linux/kexec.h>
#include <linux/kexec_handover.h>
#include <linux/libfdt.h>
#include <linux/liveupdate_note.h>
#include <linux/log2.h>
#include <linux/memblock.h>
#include <linux/sizes.h>
#include <linux/string.h>
#include <linux/unaligned.h>

#ifdef CONFIG_ARM64
#include <asm/image.h>
#endif

#include "kexec_handover_pages.h"

/* The page size of the kernel before, unless it is the one of this kernel. */
static unsigned long other_page_size __ro_after_init;

/*
 * The areas that stay free for the next kernel lie as the page size of the first
 * kernel asks for. Where struct pages are initialized late, this must be the one
 * of this kernel, see SCRATCH_ALIGNMENT_BYTES.
 */
#ifndef CONFIG_DEFERRED_STRUCT_PAGE_INIT
LIVEUPDATE_NOTE(note_keeps, KHO_KEEPS_OTHER_PAGES);
#endif

/**
 * kho_other_page_size - the page size of the kernel before
 *
 * Return: 0 if it is the one of this kernel, or if nothing was handed over.
 */
unsigned long kho_other_page_size(void)
{
	return other_page_size;
}

/**
 * kho_note_page_size - note which page size the previous kernel has
 * @fdt: what it has handed over
 *
 * A kernel that does not say has the same one as this kernel, as far as is known.
 *
 * Return: 0, or -EINVAL if that cannot be a page size.
 */
int __init kho_note_page_size(const void *fdt)
{
	const void *property;
	u64 size;
	int len;

	property = fdt_getprop(fdt, 0, KHO_FDT_PAGE_SIZE_PROP_NAME, &len);
	if (!property)
		return 0;
	if (len != sizeof(size))
		return -EINVAL;
	size = get_unaligned((const u64 *)property);
	if (!is_power_of_2(size) || size < SZ_4K || size > SZ_64K)
		return -EINVAL;

	if (size != PAGE_SIZE) {
		other_page_size = size;
		pr_warn("the previous kernel has pages of %llu bytes, and this one of %lu: what it handed over stays reserved for a kernel like that\n",
			size, PAGE_SIZE);
	}
	return 0;
}

/* Reserves memory to the borders of this kernel's pages. */
static void __init reserve(phys_addr_t start, u64 size)
{
	phys_addr_t first = ALIGN_DOWN(start, PAGE_SIZE);

	memblock_reserve(first, ALIGN(start + size, PAGE_SIZE) - first);
}

/*
 * Reserves a node of the previous kernel's tree, and what it leads to. It is built
 * as kho_radix_add_key() builds one, with another PAGE_SHIFT.
 */
static void __init reserve_node(phys_addr_t phys, unsigned int level, unsigned long key)
{
	const unsigned int shift = ilog2(other_page_size);
	const unsigned int table_bits = shift - 3, bitmap_bits = shift + 3;
	const unsigned long *words = phys_to_virt(phys);
	unsigned long i;

	reserve(phys, other_page_size);
	if (level) {
		for (i = 0; i < BIT(table_bits); i++)
			if (words[i])
				reserve_node(words[i], level - 1, key << table_bits | i);
		return;
	}

	for_each_set_bit(i, words, BIT(bitmap_bits)) {
		unsigned long leaf = key << bitmap_bits | i;
		unsigned int block_shift;

		/* That would be all of memory: no kernel has written it. */
		if (leaf < 2)
			continue;
		/* The highest bit says how large the block is, the others where. */
		block_shift = 64 - (fls64(leaf) - 1);
		reserve(leaf << block_shift, BIT(block_shift));
	}
}

/**
 * kho_reserve_other_pages - reserve all that such a kernel has handed over
 * @fdt: where the FDT is
 * @map: where the root of the tree is
 */
void __init kho_reserve_other_pages(phys_addr_t fdt, phys_addr_t map)
{
	const unsigned int shift = ilog2(other_page_size);
	/* As KHO_TREE_MAX_DEPTH. */
	const unsigned int tables = DIV_ROUND_UP(64 - shift + 1 - (shift + 3), shift - 3);

	reserve(fdt, other_page_size);
	reserve_node(map, tables, 0);
}

/* The page size of an image that is being loaded. */
static unsigned long image_page_size(const struct kimage *image)
{
#ifdef CONFIG_ARM64
	const struct arm64_image_header *header = image->kernel_buf;

	if (image->kernel_buf_len < sizeof(*header) ||
	    memcmp(&header->magic, ARM64_IMAGE_MAGIC, sizeof(header->magic)))
		return PAGE_SIZE;
	switch (arm64_image_flag_field(le64_to_cpu(header->flags), ARM64_IMAGE_FLAG_PAGE_SIZE)) {
	case ARM64_IMAGE_FLAG_PAGE_SIZE_4K:
		return SZ_4K;
	case ARM64_IMAGE_FLAG_PAGE_SIZE_16K:
		return SZ_16K;
	case ARM64_IMAGE_FLAG_PAGE_SIZE_64K:
		return SZ_64K;
	}
#endif
	return PAGE_SIZE;
}

/* Whether an image has the note that it keeps what it cannot use. */
static bool image_keeps(const struct kimage *image)
{
	static const char text[] = KHO_KEEPS_OTHER_PAGES;
	const struct liveupdate_note *note;
	unsigned long at;

	for (at = 0; at + sizeof(*note) <= image->kernel_buf_len; at += sizeof(u32)) {
		note = image->kernel_buf + at;
		if (note->text_len == sizeof(note->text) && note->type == 1 &&
		    !memcmp(note->owner, LIVEUPDATE_NOTE_OWNER, sizeof(LIVEUPDATE_NOTE_OWNER)) &&
		    !memcmp(note->text, text, sizeof(text)))
			return true;
	}
	return false;
}

/**
 * kho_image_takes_over - whether an image can use, or keep, what it would get
 * @image: the image, which is being loaded
 */
bool kho_image_takes_over(const struct kimage *image)
{
	unsigned long handed_over = other_page_size ?: PAGE_SIZE;
	unsigned long size = image_page_size(image);

	if (size == handed_over || image_keeps(image))
		return true;
	pr_warn("the image has pages of %lu bytes, and cannot keep what is of %lu: it gets nothing\n",
		size, handed_over);
	return false;
}
