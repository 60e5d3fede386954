// SPDX-License-Identifier: GPL-2.0

/*
 * Puts folios with content, such as those that a previous kernel has handed
 * over, into a shmem file into which nobody else does: one that nobody else has
 * open, or that is claimed (mm/shmem_target.c).
 *
 * shmem_get_folio() allocates folios one by one. Here they exist already, and
 * there are many: one walk through the page cache, one lock and one update of
 * each counter are enough for single pages that follow each other in the file.
 *
 * Other tasks may find its folios at once, also where nobody else has the file
 * open: drop_caches, for one, goes through all inodes. So a folio is locked,
 * dirty and complete before it is stored. A task that finds it cannot lock it,
 * and gives up or waits; from the unlock on, a dirty folio of shmem is not
 * dropped.
 */

#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/mm_inline.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/shmem_fs.h>
#include <linux/shmem_restore.h>
#include <linux/xarray.h>
#include <trace/events/pagemap.h>

#include "internal.h"

/*
 * Charges are forced. Nothing is allocated, so there is nothing to reclaim for,
 * and giving the content up is worse than going beyond a limit.
 */
#define RESTORE_CHARGE	(GFP_NOWAIT | __GFP_HIGH)

#ifdef CONFIG_MEMCG
/* Leaves an eighth of the limit to those who have yet to allocate something. */
static bool counter_has_room(struct page_counter *counter,
			     unsigned long pages)
{
	unsigned long limit = min(READ_ONCE(counter->max),
				  READ_ONCE(counter->high));

	return page_counter_read(counter) + pages <= limit - limit / 8;
}

static bool memcg_has_room(struct mem_cgroup *memcg, unsigned long pages)
{
	return counter_has_room(&memcg->memory, pages) &&
	       (cgroup_subsys_on_dfl(memory_cgrp_subsys) ||
		counter_has_room(&memcg->memsw, pages));
}
#endif

/*
 * Directs charges to the group of the current task, or else to the nearest one
 * above it that has room for @pages.
 *
 * A group beyond its limit would have tasks killed as soon as one of them
 * allocates anything, for memory that is there already.
 */
static void charge_where_room(unsigned long pages, struct mem_cgroup **own,
			      struct mem_cgroup **outer)
{
	*own = get_mem_cgroup_from_mm(NULL);
#ifdef CONFIG_MEMCG
	struct mem_cgroup *memcg, *chosen = *own;

	if (mem_cgroup_disabled())
		return;
	for (memcg = chosen; memcg && !mem_cgroup_is_root(memcg);
	     memcg = parent_mem_cgroup(memcg))
		if (!memcg_has_room(memcg, pages))
			chosen = parent_mem_cgroup(memcg);
	*outer = set_active_memcg(chosen);
#endif
}

/* Takes charge_where_room() back. */
static void charge_as_before(struct mem_cgroup *own, struct mem_cgroup *outer)
{
	if (mem_cgroup_disabled())
		return;
	set_active_memcg(outer);
	mem_cgroup_put(own);
}

/* Initialises a folio to which there is no other reference for the page cache. */
static void prepare_folio(struct folio *folio, struct address_space *mapping,
			  pgoff_t index, bool uptodate)
{
	__folio_set_locked(folio);
	__folio_set_swapbacked(folio);
	folio_set_dirty(folio);
	if (uptodate)
		__folio_mark_uptodate(folio);
	folio->mapping = mapping;
	folio->index = index;
}

/* Takes prepare_folio() and the charge back. */
static void unprepare_folio(struct folio *folio)
{
	folio->mapping = NULL;
	folio_clear_uptodate(folio);
	folio_clear_dirty(folio);
	__folio_clear_swapbacked(folio);
	__folio_clear_locked(folio);
	mem_cgroup_uncharge(folio);
}

/*
 * Counts single pages as such of shmem and puts them on the LRU list, as many
 * from the first on as count alike and belong on the same list. Poisoned ones
 * are on no list, nor is any without @listing.
 */
static unsigned int count_pages(struct folio **folios, unsigned int nr,
				bool listing)
{
	struct folio *folio = folios[0];
	enum zone_type zone = folio_zonenum(folio);
	enum lru_list lru = folio_lru_list(folio);
	unsigned int count = 0, listed = 0;
	struct lruvec *lruvec = folio_lruvec_lock_irq(folio);

	do {
		/* As memory_failure() leaves a page of shmem that it finds. */
		if (listing && !folio_test_hwpoison(folio)) {
			if (!lru_gen_add_folio(lruvec, folio, false)) {
				list_add(&folio->lru, &lruvec->lists[lru]);
				listed++;
			}
			folio_set_lru(folio);
			trace_mm_lru_insertion(folio);
		}
		if (++count == nr)
			break;
		folio = folios[count];
	} while (folio_zonenum(folio) == zone &&
		 folio_matches_lruvec(folio, lruvec));

	if (listed)
		update_lru_size(lruvec, lru, zone, listed);
	mod_lruvec_state(lruvec, NR_FILE_PAGES, count);
	mod_lruvec_state(lruvec, NR_SHMEM, count);
	lruvec_unlock_irq(lruvec);
	return count;
}

/*
 * Stores prepared single pages from @index on, one after the other. Returns an
 * error for the one at *@stored, if there is one; it is as it was.
 */
static int store_pages(struct address_space *mapping, pgoff_t index,
		       struct folio **folios, unsigned int nr, bool uptodate,
		       unsigned int *stored)
{
	gfp_t gfp = mapping_gfp_mask(mapping) & GFP_RECLAIM_MASK;
	XA_STATE(xas, &mapping->i_pages, index);
	unsigned int first;
	void *entry;

	*stored = 0;
	do {
		xas_lock_irq(&xas);
		first = *stored;
		entry = xas_load(&xas);
		while (!xas_error(&xas)) {
			struct folio *folio = folios[*stored];

			if (entry) {
				xas_set_err(&xas, -EEXIST);
				break;
			}
			prepare_folio(folio, mapping, xas.xa_index, uptodate);
			xas_store(&xas, folio);
			if (xas_error(&xas) || ++*stored == nr)
				break;
			entry = xas_next(&xas);
		}
		mapping->nrpages += *stored - first;
		xas_unlock_irq(&xas);
	} while (xas_nomem(&xas, gfp | __GFP_NOFAIL));

	return xas_error(&xas);
}

/*
 * Stores a prepared folio, which may be a large one, and counts it. It is as it
 * was if there is something at its place already.
 */
static int store_folio(struct address_space *mapping, struct folio *folio)
{
	gfp_t gfp = mapping_gfp_mask(mapping) & GFP_RECLAIM_MASK;
	XA_STATE_ORDER(xas, &mapping->i_pages, folio->index,
		       folio_order(folio));
	long nr = folio_nr_pages(folio);

	/* The page cache has a reference for each page. */
	folio_ref_add(folio, nr);
	do {
		xas_lock_irq(&xas);
		if (xas_find_conflict(&xas))
			xas_set_err(&xas, -EEXIST);
		else
			xas_store(&xas, folio);
		if (!xas_error(&xas)) {
			mapping->nrpages += nr;
			lruvec_stat_mod_folio(folio, NR_FILE_PAGES, nr);
			lruvec_stat_mod_folio(folio, NR_SHMEM, nr);
			if (folio_test_pmd_mappable(folio))
				lruvec_stat_mod_folio(folio, NR_SHMEM_THPS, nr);
		}
		xas_unlock_irq(&xas);
	} while (xas_nomem(&xas, gfp | __GFP_NOFAIL));

	if (xas_error(&xas))
		folio_ref_sub(folio, nr);
	return xas_error(&xas);
}

/**
 * shmem_restore_begin - account for folios that are to be put into a file
 * @inode: inode of a shmem file, into which nobody else inserts anything
 * @pages: how many pages they have
 *
 * Must be followed by shmem_restore_end(), if there is no error.
 *
 * Return: 0, or -ENOSPC if the limits of the system or the file system are
 * exceeded.
 */
int shmem_restore_begin(struct inode *inode, unsigned long pages)
{
	return shmem_inode_acct_blocks(inode, pages);
}

/**
 * shmem_restore_folio - put a folio of any order into a file
 * @inode: inode of a shmem file, into which nobody else inserts anything
 * @index: where, in pages; aligned to the size of the folio
 * @folio: the folio, without poisoned pages, to which the caller has the only
 *         reference
 * @uptodate: whether it has content; else it reads as zeros
 * @lru: whether it goes on an LRU list now
 *
 * Must be between shmem_restore_begin() and shmem_restore_end(). May sleep.
 *
 * Return: 0, and the file has the reference. Or -EEXIST if there is something
 * at @index, and the reference is still the caller's.
 */
int shmem_restore_folio(struct inode *inode, pgoff_t index,
			struct folio *folio, bool uptodate, bool lru)
{
	struct address_space *mapping = inode->i_mapping;
	struct mem_cgroup *own, *outer = NULL;
	int err;

	charge_where_room(folio_nr_pages(folio), &own, &outer);
	err = mem_cgroup_charge(folio, NULL, RESTORE_CHARGE);
	if (!err) {
		prepare_folio(folio, mapping, index, uptodate);
		err = store_folio(mapping, folio);
		if (err)
			unprepare_folio(folio);
	}
	charge_as_before(own, outer);
	if (err)
		return err;

	if (lru)
		folio_add_lru(folio);
	folio_unlock(folio);
	folio_put(folio);
	return 0;
}

/**
 * shmem_restore_pages - put single pages into a file, one behind the other
 * @inode: inode of a shmem file, into which nobody else inserts anything
 * @index: where the first one goes, in pages
 * @folios: folios of order 0, to each of which the caller has the only
 *          reference; one that is poisoned stays so, reading it is an error
 * @nr: how many, at least one; interrupts are off while they are stored
 * @uptodate: whether they have content; else they read as zeros
 * @lru: whether they go on LRU lists now
 * @restored: how many of them, from the first on, the file has the references
 *            to; the others are as they were
 *
 * Must be between shmem_restore_begin() and shmem_restore_end(). May sleep.
 *
 * Return: 0 if the file has all of them. Or -EEXIST if there is something where
 * the next one was to go.
 */
int shmem_restore_pages(struct inode *inode, pgoff_t index,
			struct folio **folios, unsigned int nr, bool uptodate,
			bool lru, unsigned int *restored)
{
	struct address_space *mapping = inode->i_mapping;
	struct mem_cgroup *own, *outer = NULL;
	unsigned int charged = 0, i;
	int err = 0;

	*restored = 0;
	charge_where_room(nr, &own, &outer);
	if (!mem_cgroup_disabled())
		for (; charged < nr && !err; charged++)
			err = mem_cgroup_charge(folios[charged], NULL,
						RESTORE_CHARGE);
	if (!err)
		err = store_pages(mapping, index, folios, nr, uptodate,
				  restored);
	charge_as_before(own, outer);

	if (err)
		for (i = *restored; i < nr; i++)
			unprepare_folio(folios[i]);
	for (i = 0; i < *restored;)
		i += count_pages(folios + i, *restored - i, lru);
	/* The page cache has the reference, and cannot lose it to anybody. */
	for (i = 0; i < *restored; i++)
		folio_unlock(folios[i]);
	return err;
}

/**
 * shmem_restore_end - correct the account of shmem_restore_begin()
 * @inode: the inode
 * @pages: the same number
 *
 * Uncharges pages that were not inserted, or were removed already.
 */
void shmem_restore_end(struct inode *inode, unsigned long pages)
{
	shmem_recalc_inode(inode, pages, 0);
}
