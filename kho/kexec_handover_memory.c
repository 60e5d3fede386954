// SPDX-License-Identifier: GPL-2.0

/*
 * Which memory the next kernel will have.
 *
 * The next kernel follows what KHO has left for it before it knows of any memory
 * but what its memory map lists. What lies elsewhere is not mapped then, and it
 * dies without a message. Two kinds of memory are missing there:
 *
 * - what was added after boot: kexec_file_load() passes on the memory map of the
 *   firmware. This is known whenever memory is allocated or preserved.
 * - what the command line of the image takes away (mem=, memmap=). This is known
 *   when the image is loaded, and looked at when it is to be started.
 */

#define pr_fmt(fmt) "KHO: " fmt

#include <linux/kexec.h>
#include <linux/kexec_handover.h>
#include <linux/memblock.h>
#include <linux/moduleparam.h>
#include <linux/overflow.h>
#include <linux/range.h>
#include <linux/slab.h>
#include <linux/string.h>

#ifdef CONFIG_X86
#include <asm/e820/api.h>
#endif

#include "kexec_handover_memory.h"

#ifdef CONFIG_X86

#define MAX_BOOT_RANGES	E820_MAX_ENTRIES_ZEROPAGE

void __init kho_note_boot_memory(void)
{
}

/* The memory map as setup_e820_entries() passes it on, in ascending order. */
static bool boot_range(unsigned int i, struct range *range)
{
	const struct e820_entry *entry = &e820_table_kexec->entries[i];

	if (i >= min_t(u32, e820_table_kexec->nr_entries, MAX_BOOT_RANGES))
		return false;
	range->start = entry->addr;
	range->end = entry->addr;
	if (entry->type == E820_TYPE_RAM)
		range->end += entry->size;
	return true;
}

#else

#define MAX_BOOT_RANGES	128

static struct range boot_ranges[MAX_BOOT_RANGES];
static unsigned int nr_boot_ranges;

/* Later, memory that is added comes to the same list. */
void __init kho_note_boot_memory(void)
{
	struct memblock_region *region;

	for_each_mem_region(region) {
		if (memblock_is_nomap(region))
			continue;
		if (nr_boot_ranges == MAX_BOOT_RANGES)
			return;
		boot_ranges[nr_boot_ranges].start = region->base;
		boot_ranges[nr_boot_ranges++].end = region->base + region->size;
	}
}

static bool boot_range(unsigned int i, struct range *range)
{
	if (i >= nr_boot_ranges)
		return false;
	*range = boot_ranges[i];
	return true;
}

#endif /* CONFIG_X86 */

/* Goes on behind a range that has @at. */
static phys_addr_t skip_range(const struct range *range, phys_addr_t at)
{
	return range->start <= at && at < range->end ? range->end : at;
}

/**
 * kho_memory_stays - whether the next kernel will have some memory
 * @phys: where it begins
 * @size: how many bytes
 *
 * Memory that was added after boot is not listed in the memory map that the next
 * kernel gets. What the command line of that kernel says is not known yet.
 */
bool kho_memory_stays(phys_addr_t phys, u64 size)
{
	/* The range in which memory was found last. Any other value costs time only. */
	static unsigned int hint;
	phys_addr_t at = phys;
	struct range range;
	unsigned int i;

	if (boot_range(READ_ONCE(hint), &range) && range.start <= phys &&
	    phys < range.end && size <= range.end - phys)
		return true;

	for (i = 0; at - phys < size && boot_range(i, &range); i++) {
		phys_addr_t next = skip_range(&range, at);

		if (next != at)
			WRITE_ONCE(hint, i);
		at = next;
	}
	return at - phys >= size;
}

/**
 * kho_gfp - have memory allocated that the next kernel will have
 * @gfp: how it is allocated otherwise
 *
 * Return: the same, unless memory was added: that lies higher than what there is
 * of ZONE_DMA32.
 */
gfp_t kho_gfp(gfp_t gfp)
{
	if (kho_memory_stays(PFN_PHYS(max_pfn - 1), PAGE_SIZE))
		return gfp;
	return (gfp & ~GFP_ZONEMASK) | GFP_DMA32;
}

/**
 * kho_alloc_pages - allocate memory that the next kernel will have
 * @gfp: as for alloc_pages()
 * @order: likewise
 *
 * Return: the first page, or NULL.
 */
struct page *kho_alloc_pages(gfp_t gfp, unsigned int order)
{
	struct page *page = alloc_pages(gfp, order);

	if (!page || kho_memory_stays(page_to_phys(page), PAGE_SIZE << order))
		return page;
	__free_pages(page, order);

	page = alloc_pages(kho_gfp(gfp), order);
	if (!page || kho_memory_stays(page_to_phys(page), PAGE_SIZE << order))
		return page;
	__free_pages(page, order);
	return NULL;
}

/* Where memory ends by "mem=". */
static u64 end_of_memory(u64 limit)
{
	u64 end = limit;

	if (IS_ENABLED(CONFIG_ARM64)) {
		/* There it is an amount. */
		struct range range;
		unsigned int i;

		for (i = 0; boot_range(i, &range); i++) {
			end = range.start + min(limit, range.end - range.start);
			limit -= end - range.start;
			if (!limit)
				break;
		}
	}
	return end;
}

static int note_change(struct kimage *image, u64 start, u64 last, bool add)
{
	unsigned int nr = image->kho.nr_changes;

	if (nr == ARRAY_SIZE(image->kho.changes)) {
		pr_err("the command line of the image has too many memory options\n");
		return -E2BIG;
	}
	image->kho.changes[nr] = (struct kho_memory_change) {
		.start = start,
		.last = last,
		.add = add,
	};
	image->kho.nr_changes++;
	return 0;
}

static int note_limit(struct kimage *image, const char *value)
{
	u64 limit = value ? memparse(value, NULL) : 0;

	if (!limit)
		return 0;
	return note_change(image, end_of_memory(limit), U64_MAX, false);
}

#ifdef CONFIG_X86
/* One of the values of parse_memmap_one(). */
static int note_map(struct kimage *image, char *value)
{
	u64 size, start, last, from = E820_TYPE_RAM, to = 0;
	char *end, kind;

	if (!strncmp(value, "exactmap", 8))
		return note_change(image, 0, U64_MAX, false);

	size = memparse(value, &end);
	if (end == value)
		return 0;
	kind = *end;
	if (!kind || !strchr("@#$!%", kind))
		return note_change(image, size, U64_MAX, false);
	if (!size)
		return 0;

	start = memparse(end + 1, &end);
	if (kind == '@')
		to = E820_TYPE_RAM;
	if (kind == '%' && *end == '-')
		from = simple_strtoull(end + 1, &end, 0);
	if (kind == '%' && *end == '+')
		to = simple_strtoull(end + 1, &end, 0);
	/* Something else may become something else again. */
	if (from != E820_TYPE_RAM && to != E820_TYPE_RAM)
		return 0;
	if (check_add_overflow(start, size - 1, &last))
		last = U64_MAX;
	return note_change(image, start, last, to == E820_TYPE_RAM);
}

static int note_maps(struct kimage *image, char *value)
{
	char *one;
	int err;

	while ((one = strsep(&value, ","))) {
		err = note_map(image, one);
		if (err)
			return err;
	}
	return 0;
}
#else
static int note_maps(struct kimage *image, char *value)
{
	return 0;
}
#endif

/**
 * kho_note_cmdline - note what the command line of an image does to memory
 * @image: the image, whose command line is not kept
 *
 * Return: 0, -ENOMEM, or -E2BIG if there are too many options to remember.
 */
int kho_note_cmdline(struct kimage *image)
{
	char *copy, *rest, *name, *value;
	unsigned int patterns;
	int err = 0;

	if (!image->cmdline_buf)
		return 0;
	copy = kstrdup(image->cmdline_buf, GFP_KERNEL);
	if (!copy)
		return -ENOMEM;

	for (rest = skip_spaces(copy); *rest && !err;) {
		rest = next_arg(rest, &name, &value);
		if (!value && !strcmp(name, "--"))
			break;
		if (!strcmp(name, "mem"))
			err = note_limit(image, value);
		else if (!strcmp(name, "memmap") && value)
			err = note_maps(image, value);
		else if (!strcmp(name, "memtest"))
			image->kho.overwrites = !value || kstrtouint(value, 0, &patterns) ||
						patterns;
	}
	kfree(copy);
	return err;
}

/**
 * kho_image_has - whether an image will have some memory
 * @image: the image
 * @phys: where the memory begins
 * @size: how many bytes, not more than are aligned
 */
bool kho_image_has(const struct kimage *image, phys_addr_t phys, u64 size)
{
	bool has = kho_memory_stays(phys, size);
	u64 last = phys + size - 1;
	unsigned int i;

	for (i = 0; i < image->kho.nr_changes; i++) {
		const struct kho_memory_change *change = &image->kho.changes[i];

		if (!change->add && change->start <= last && change->last >= phys)
			has = false;
		if (change->add && change->start <= phys && change->last >= last)
			has = true;
	}
	return has;
}
