// SPDX-License-Identifier: GPL-2.0

/*
 * Pages with hardware errors across a kexec.
 *
 * A kernel that is started by kexec takes all memory for good: a page that the
 * previous kernel has found to be poisoned would be handed out again or, if it
 * is preserved, be read as if nothing had happened. So each kernel keeps a list
 * of these pages in memory that the next one finds as a subtree of KHO. The list
 * is complete whenever the kexec happens: a page is added where it is counted.
 *
 * The next kernel never gives these pages to its allocator, and marks them as
 * poisoned. Preserved memory that has such pages is restored with that mark.
 */

#define pr_fmt(fmt) "KHO: " fmt

#include <linux/kexec_handover.h>
#include <linux/kexec_handover_poison.h>
#include <linux/memblock.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

#define KHO_POISON_NODE_NAME	"hwpoison"

/* "hwpoison" */
#define KHO_POISON_MAGIC	0x6e6f73696f707768ULL

/* A page of the list, as it is handed over. */
struct kho_poison_block {
	u64 magic;	/* KHO_POISON_MAGIC: a corrupt list must not free other pages */
	u64 next;	/* where the next one is, or 0 */
	u64 nr;		/* how many numbers follow, 0 among them for none */
	u64 pfns[PAGE_SIZE / sizeof(u64) - 3];
};

static_assert(sizeof(struct kho_poison_block) == PAGE_SIZE);

/* More blocks than that are an error. */
#define MAX_BLOCKS	4096

/* The list for the next kernel. */
static struct kho_poison_block *first, *last;
static DEFINE_SPINLOCK(list_lock);
/* Set when there was no room: then it is not known which page is missing. */
static bool incomplete;

/* Adds a block behind the last, where there is none, before it is needed. */
static void add_block(struct work_struct *work)
{
	struct kho_poison_block *block = kho_alloc_preserve(sizeof(*block));
	unsigned long flags;

	if (IS_ERR(block))
		return;
	block->magic = KHO_POISON_MAGIC;
	spin_lock_irqsave(&list_lock, flags);
	/* This work may have been queued again while it ran. */
	if (!last->next) {
		last->next = virt_to_phys(block);
		block = NULL;
	}
	spin_unlock_irqrestore(&list_lock, flags);
	if (block)
		kho_unpreserve_free(block);
}

static DECLARE_WORK(add_block_work, add_block);

/**
 * kho_page_poisoned - note for the next kernel that a page is poisoned
 * @pfn: number of the page
 *
 * May be called in any context but that of an NMI.
 */
void kho_page_poisoned(unsigned long pfn)
{
	unsigned long flags;

	spin_lock_irqsave(&list_lock, flags);
	if (last && last->nr == ARRAY_SIZE(last->pfns) && last->next)
		last = phys_to_virt(last->next);
	if (!last || last->nr == ARRAY_SIZE(last->pfns))
		incomplete = true;
	else
		last->pfns[last->nr++] = pfn;
	if (last && !last->next && last->nr > ARRAY_SIZE(last->pfns) / 2)
		schedule_work(&add_block_work);
	spin_unlock_irqrestore(&list_lock, flags);
}

/**
 * kho_page_unpoisoned - take back kho_page_poisoned()
 * @pfn: number of the page
 */
void kho_page_unpoisoned(unsigned long pfn)
{
	struct kho_poison_block *block;
	unsigned long flags;
	unsigned int i;

	spin_lock_irqsave(&list_lock, flags);
	for (block = first; block;
	     block = block->next ? phys_to_virt(block->next) : NULL)
		for (i = 0; i < block->nr; i++)
			if (block->pfns[i] == pfn)
				block->pfns[i] = 0;
	spin_unlock_irqrestore(&list_lock, flags);
}

/**
 * kho_poison_complete - whether the next kernel will know of all poisoned pages
 */
bool kho_poison_complete(void)
{
	return !READ_ONCE(incomplete);
}

/**
 * kho_poisoned - whether any page of some memory is known to be poisoned
 * @phys: where it begins
 * @size: how many bytes
 */
bool kho_poisoned(phys_addr_t phys, u64 size)
{
	struct page *page;
	phys_addr_t at;

	/* Fast path: no page of the machine is poisoned. */
	if (!atomic_long_read(&num_poisoned_pages))
		return false;
	for (at = phys; at - phys < size; at += PAGE_SIZE) {
		page = pfn_to_online_page(PHYS_PFN(at));
		if (page && PageHWPoison(page))
			return true;
	}
	return false;
}

/* Where the previous kernel has left its list, or 0. */
static phys_addr_t __init incoming_list(void)
{
	phys_addr_t phys;

	return kho_retrieve_subtree(KHO_POISON_NODE_NAME, &phys, NULL) ? 0 : phys;
}

/* A block of the previous kernel's list, or NULL if there is none at @phys. */
static struct kho_poison_block *__init incoming_block(phys_addr_t phys)
{
	struct kho_poison_block *block;

	if (kho_preserved_order(phys) != 0)
		return NULL;
	block = phys_to_virt(phys);
	return block->magic == KHO_POISON_MAGIC ? block : NULL;
}

/* Goes through the previous kernel's list, whose content may be anything. */
static void __init for_each_incoming(void (*act)(unsigned long pfn))
{
	struct kho_poison_block *block;
	phys_addr_t phys = incoming_list();
	unsigned int blocks, i;

	for (blocks = 0; blocks < MAX_BLOCKS; blocks++, phys = block->next) {
		block = incoming_block(phys);
		if (!block)
			return;
		for (i = 0; i < min(block->nr, ARRAY_SIZE(block->pfns)); i++)
			if (block->pfns[i] < PHYS_PFN(PHYS_ADDR_MAX))
				act(block->pfns[i]);
	}
}

static void __init reserve_page(unsigned long pfn)
{
	if (memblock_is_map_memory(PFN_PHYS(pfn)))
		memblock_reserve(PFN_PHYS(pfn), PAGE_SIZE);
}

/* Keeps poisoned pages out of the page allocator. */
void __init kho_poison_reserve(void)
{
	for_each_incoming(reserve_page);
}

static void __init mark_page(unsigned long pfn)
{
	/* As it was reserved, its struct page is initialised by now. */
	if (pfn_to_online_page(pfn) && !TestSetPageHWPoison(pfn_to_page(pfn)))
		atomic_long_inc(&num_poisoned_pages);
}

/* Before any preserved memory is restored. */
static int __init kho_poison_mark(void)
{
	for_each_incoming(mark_page);
	return 0;
}
early_initcall(kho_poison_mark);

/* The rest of num_poisoned_pages_inc(), which takes more than there is early. */
static void __init note_page(unsigned long pfn)
{
	if (pfn_to_online_page(pfn)) {
		memblk_nr_poison_inc(pfn);
		kho_page_poisoned(pfn);
	}
}

static int __init kho_poison_init(void)
{
	struct kho_poison_block *block;
	phys_addr_t phys, next;
	int err;

	if (kho_is_enabled()) {
		block = kho_alloc_preserve(sizeof(*block));
		if (IS_ERR(block))
			return PTR_ERR(block);
		block->magic = KHO_POISON_MAGIC;
		err = kho_add_subtree(KHO_POISON_NODE_NAME, block, sizeof(*block));
		if (err) {
			kho_unpreserve_free(block);
			return err;
		}
		spin_lock_irq(&list_lock);
		first = block;
		last = block;
		spin_unlock_irq(&list_lock);
	}

	for_each_incoming(note_page);
	for (phys = incoming_list(); (block = incoming_block(phys)); phys = next) {
		next = block->next;
		kho_restore_free(block);
	}
	if (phys)
		pr_err("the list of poisoned pages is corrupt at %pa\n", &phys);
	return 0;
}
fs_initcall(kho_poison_init);
