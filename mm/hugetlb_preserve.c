// SPDX-License-Identifier: GPL-2.0

/*
 * HugeTLB files across a live update: what keeps a file as it is while its
 * content is handed over, and how restored folios become those of a new file.
 *
 * A folio that the previous kernel handed over is not taken from the free ones
 * of a pool, it is added to those in use. The pool is as large afterwards as if
 * the folio had been allocated from it: where the boot knew of it
 * (hugetlb_expect()), the boot has allocated fewer; else a free one goes to the
 * page allocator in exchange. Where the pool has none left, the folio counts as
 * surplus, beyond what may be overcommitted: its memory is there already.
 */

#include <linux/hugetlb.h>
#include <linux/hugetlb_cgroup.h>
#include <linux/hugetlb_preserve.h>
#include <linux/kexec_handover.h>
#include <linux/memblock.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/mm_inline.h>
#include <linux/pagemap.h>

#include "hugetlb_internal.h"
#include "hugetlb_vmemmap.h"
#include "internal.h"

/**
 * hugetlb_memfd - whether a file is one of HugeTLB without a name
 * @file: the file
 *
 * Such as memfd_create() makes, not one of a file system that was mounted.
 */
bool hugetlb_memfd(struct file *file)
{
	return is_file_hugepages(file) &&
	       (file_inode(file)->i_sb->s_flags & SB_KERNMOUNT) &&
	       !(file_inode(file)->i_flags & S_PRIVATE);
}

/**
 * hugetlb_freeze - have a file neither lose folios nor change its size
 * @inode: the inode of the file
 *
 * Return: 0, or -EBUSY if it is frozen already.
 */
int hugetlb_freeze(struct inode *inode)
{
	struct hugetlbfs_inode_info *info = HUGETLBFS_I(inode);
	int err = 0;

	inode_lock(inode);
	if (info->frozen)
		err = -EBUSY;
	else
		WRITE_ONCE(info->frozen, true);
	inode_unlock(inode);
	return err;
}

/**
 * hugetlb_thaw - undo hugetlb_freeze()
 * @inode: the inode of the file
 */
void hugetlb_thaw(struct inode *inode)
{
	inode_lock(inode);
	WRITE_ONCE(HUGETLBFS_I(inode)->frozen, false);
	inode_unlock(inode);
}

/**
 * hugetlb_record - set who records the folios that are inserted into a file
 * @inode: the inode of the file, which is frozen
 * @recorder: the recorder, or NULL for none
 *
 * Of folios that are inserted at the same time, a search from now on finds each
 * that the new recorder is not told of. The recorder before, if any, may get
 * calls until the last reference that it has given out is dropped.
 */
void hugetlb_record(struct inode *inode, struct hugetlb_recorder *recorder)
{
	xa_lock_irq(&inode->i_mapping->i_pages);
	WRITE_ONCE(HUGETLBFS_I(inode)->recorder, recorder);
	xa_unlock_irq(&inode->i_mapping->i_pages);
	/* Pairs with that in hugetlb_insert_folio(). */
	smp_mb();
}

static struct hugetlb_recorder *recorder_get(struct inode *inode)
{
	struct hugetlbfs_inode_info *info = HUGETLBFS_I(inode);
	struct hugetlb_recorder *recorder;

	if (likely(!READ_ONCE(info->recorder)))
		return NULL;
	xa_lock_irq(&inode->i_mapping->i_pages);
	recorder = info->recorder;
	if (recorder)
		recorder->ops->get(recorder);
	xa_unlock_irq(&inode->i_mapping->i_pages);
	return recorder;
}

static void recorder_put(struct hugetlb_recorder *recorder)
{
	if (recorder)
		recorder->ops->put(recorder);
}

static int record(struct hugetlb_recorder *recorder, struct folio *folio,
		  pgoff_t index)
{
	int err;

	if (!kho_memory_stays(PFN_PHYS(folio_pfn(folio)), folio_size(folio)))
		return -EBUSY;
	/* It was allocated before there was a recorder; the next one will not be. */
	if (!folio_is_longterm_pinnable(folio))
		return -EAGAIN;

	err = try_grab_folio(folio, 1, FOLL_PIN);
	if (err)
		return err;
	err = recorder->ops->record(recorder, folio, index);
	if (err)
		unpin_folio(folio);
	return err;
}

/**
 * hugetlb_insert_folio - put a folio into the page cache
 * @mapping: the mapping of a file
 * @folio: the folio, locked and up to date
 * @index: where it goes, in pages
 *
 * If the file has a recorder, it has recorded the folio when this succeeds: before
 * the insertion, or, if it was set in between, after it. A folio that is recorded
 * and then not inserted does no harm, even if the machine stops in between: the
 * next kernel has it where there was a hole.
 *
 * Return: 0, or an errno. -EAGAIN if another folio can be used.
 */
int hugetlb_insert_folio(struct address_space *mapping, struct folio *folio,
			 pgoff_t index)
{
	struct hugetlb_recorder *recorder = recorder_get(mapping->host), *late;
	int err = 0;

	if (recorder)
		err = record(recorder, folio, index);
	if (err)
		goto put;

	err = __filemap_add_folio(mapping, folio, index, GFP_KERNEL, NULL);
	if (err) {
		if (recorder)
			recorder->ops->forget(recorder, folio);
		goto put;
	}

	/*
	 * Pairs with that in hugetlb_record(): either the search that follows it
	 * finds the folio, or we see the recorder.
	 */
	smp_mb();
	late = recorder_get(mapping->host);
	if (late && late != recorder) {
		err = record(late, folio, index);
		/* Nobody has access to it: it is locked. */
		if (err)
			filemap_remove_folio(folio);
	}
	recorder_put(late);
put:
	recorder_put(recorder);
	return err;
}

/**
 * hugetlb_reserved_ranges - tell for which pages of a file there is a reservation
 * @inode: the inode of the file
 * @index: where to begin, in huge pages
 * @ranges: where to tell them, in ascending order
 * @max: how many, at most
 *
 * Pages that are there have one, too.
 *
 * Return: how many ranges there are.
 */
size_t hugetlb_reserved_ranges(struct inode *inode, pgoff_t index,
			       struct hugetlb_range *ranges, size_t max)
{
	struct resv_map *map = HUGETLBFS_I(inode)->resv_map;
	struct file_region *region;
	size_t nr = 0;

	spin_lock(&map->lock);
	list_for_each_entry(region, &map->regions, link) {
		if (nr == max)
			break;
		if (region->to <= index)
			continue;
		ranges[nr].from = max_t(pgoff_t, region->from, index);
		ranges[nr++].to = region->to;
	}
	spin_unlock(&map->lock);
	return nr;
}

/* How many folios of a size are handed over and not claimed yet, in each node. */
struct expected {
	unsigned int order;
	unsigned long nr[MAX_NUMNODES];
	unsigned long total;
	/* For how many of them the boot allocates none. Used while it does. */
	unsigned long spared[MAX_NUMNODES];
};

/* From hugetlb_init() on under hugetlb_lock. The sizes are not known before. */
static struct expected expected[HUGE_MAX_HSTATE];

static struct expected *expected_of(unsigned int order)
{
	struct expected *e;

	for (e = expected; e < expected + ARRAY_SIZE(expected); e++)
		if (e->total && e->order == order)
			return e;
	return NULL;
}

/**
 * hugetlb_expect - announce folios that the previous kernel handed over
 * @order: their order
 * @pfn: number of a page of one of them: all are in the same node
 * @folios: how many
 *
 * To be called before the initcall of HugeTLB.
 *
 * Return: whether that will be taken into account.
 */
bool hugetlb_expect(unsigned int order, unsigned long pfn, unsigned long folios)
{
	struct expected *e = expected_of(order);
	int nid;

	if (!pfn_valid(pfn) || folios > max_pfn >> order)
		return false;
	for (nid = 0; !e && nid < ARRAY_SIZE(expected); nid++)
		if (!expected[nid].total)
			e = &expected[nid];
	if (!e || !folios)
		return false;

	e->order = order;
	e->nr[pfn_to_nid(pfn)] += folios;
	e->total += folios;
	return true;
}

/* How many pages each pool was to have, before the boot tried to allocate them. */
static unsigned long wanted_pages[HUGE_MAX_HSTATE] __initdata;

/**
 * hugetlb_note_wanted - note how many pages a pool is to have
 * @h: the pool
 *
 * If the boot finds fewer, it gives the number up. Of 1 GiB pages it does so
 * before it is known what is handed over.
 */
void __init hugetlb_note_wanted(struct hstate *h)
{
	wanted_pages[hstate_index(h)] = h->max_huge_pages;
}

/**
 * hugetlb_expected_begin - spare what is handed over while the boot allocates
 * @h: the pool, which is still empty
 */
void __init hugetlb_expected_begin(struct hstate *h)
{
	struct expected *e = expected_of(h->order);
	bool by_node = false;
	int nid;

	if (!e || hstate_is_gigantic(h))
		return;
	for_each_online_node(nid)
		by_node |= h->max_huge_pages_node[nid];

	for_each_online_node(nid) {
		unsigned long wanted = by_node ? h->max_huge_pages_node[nid] :
						 h->max_huge_pages;

		e->spared[nid] = min(wanted, e->nr[nid]);
		h->max_huge_pages -= e->spared[nid];
		if (by_node)
			h->max_huge_pages_node[nid] -= e->spared[nid];
	}
}

/* Takes a free folio out of a pool, if that leaves enough for reservations. */
static struct folio *remove_free_folio(struct hstate *h, int nid)
{
	struct folio *folio;

	lockdep_assert_held(&hugetlb_lock);
	if (h->free_huge_pages <= h->resv_huge_pages)
		return NULL;
	if (list_empty(&h->hugepage_freelists[nid]))
		for_each_online_node(nid)
			if (!list_empty(&h->hugepage_freelists[nid]))
				break;
	if (nid >= MAX_NUMNODES)
		return NULL;

	folio = list_first_entry(&h->hugepage_freelists[nid], struct folio, lru);
	remove_hugetlb_folio(h, folio, false);
	return folio;
}

/*
 * Counts a folio as one in use that is there beside those that the pool has.
 * Returns one that is free, for the page allocator.
 */
static struct folio *count_folio(struct hstate *h, int nid)
{
	struct folio *exchanged = remove_free_folio(h, nid);

	h->nr_huge_pages++;
	h->nr_huge_pages_node[nid]++;
	if (!exchanged) {
		h->surplus_huge_pages++;
		h->surplus_huge_pages_node[nid]++;
	}
	return exchanged;
}

/**
 * hugetlb_expected_end - count what is handed over, as in use
 * @h: the pool, for which the boot has allocated
 */
void __init hugetlb_expected_end(struct hstate *h)
{
	struct expected *e = expected_of(h->order);
	struct folio *exchanged;
	unsigned long i;
	int nid;

	if (!e)
		return;
	if (hstate_is_gigantic(h)) {
		unsigned long missing = wanted_pages[hstate_index(h)];

		missing -= min(missing, h->max_huge_pages);
		for_each_online_node(nid) {
			e->spared[nid] = min(missing, e->nr[nid]);
			missing -= e->spared[nid];
		}
	}

	for_each_online_node(nid) {
		spin_lock_irq(&hugetlb_lock);
		h->max_huge_pages += e->spared[nid];
		h->nr_huge_pages += e->spared[nid];
		h->nr_huge_pages_node[nid] += e->spared[nid];
		spin_unlock_irq(&hugetlb_lock);

		for (i = e->spared[nid]; i < e->nr[nid]; i++) {
			spin_lock_irq(&hugetlb_lock);
			exchanged = count_folio(h, nid);
			spin_unlock_irq(&hugetlb_lock);
			if (exchanged)
				update_and_free_hugetlb_folio(h, exchanged, false);
		}
	}
}

/* Counts a folio as in use, unless the boot has. Returns as count_folio(). */
static struct folio *claim_folio(struct hstate *h, int nid)
{
	struct expected *e = expected_of(h->order);
	int from = nid;

	lockdep_assert_held(&hugetlb_lock);
	if (!e)
		return count_folio(h, nid);

	/* The previous kernel may have known other nodes. */
	if (!e->nr[from])
		for_each_online_node(from)
			if (e->nr[from])
				break;
	if (from >= MAX_NUMNODES)
		return count_folio(h, nid);

	e->nr[from]--;
	e->total--;
	if (from == nid)
		return NULL;
	h->nr_huge_pages_node[from]--;
	h->nr_huge_pages_node[nid]++;
	if (h->surplus_huge_pages_node[from]) {
		h->surplus_huge_pages_node[from]--;
		h->surplus_huge_pages_node[nid]++;
	}
	return NULL;
}

/* Makes a restored folio, to which there is one reference, one of a pool. */
static void adopt_folio(struct hstate *h, struct folio *folio,
			struct hugetlb_charge *charge)
{
	unsigned long pages = pages_per_huge_page(h);
	struct folio *exchanged;

	/*
	 * As those of the pool are while they are free. Who goes through all of
	 * memory may have a reference for a moment.
	 */
	while (!folio_ref_freeze(folio, 1))
		cond_resched();
	init_new_hugetlb_folio(folio);
	hugetlb_vmemmap_optimize_folio(h, folio);

	spin_lock_irq(&hugetlb_lock);
	exchanged = claim_folio(h, folio_nid(folio));
	list_add(&folio->lru, &h->hugepage_activelist);
	folio_ref_unfreeze(folio, 1);
	if (charge) {
		hugetlb_cgroup_commit_charge(hstate_index(h), pages,
					     charge->cgroup, folio);
		charge->left--;
	}
	spin_unlock_irq(&hugetlb_lock);

	/* It is there already: beyond its limit a group keeps it uncharged. */
	if (charge && charge->charges)
		mem_cgroup_charge_hugetlb(folio, current->mm,
					  htlb_alloc_mask(h) | __GFP_NORETRY);
	/* Counted where it is charged, as the one who frees it takes it back there. */
	lruvec_stat_mod_folio(folio, NR_HUGETLB, pages);
	if (exchanged)
		update_and_free_hugetlb_folio(h, exchanged, false);
}

/**
 * hugetlb_restore_reserve - reserve pages for a hole of a file
 * @inode: the inode of the file
 * @range: which pages
 *
 * Return: 0, or -ENOMEM if the pool has not so many that are free, or the control
 * group may not have so many.
 */
int hugetlb_restore_reserve(struct inode *inode, struct hugetlb_range range)
{
	long ret = hugetlb_reserve_pages(inode, range.from, range.to, NULL,
					 EMPTY_VMA_FLAGS);

	return ret < 0 ? ret : 0;
}

/**
 * hugetlb_restore_begin - charge for folios that are to be put into a file
 * @inode: the inode of the file
 * @folios: how many
 * @charge: whether they are charged; else they belong to no control group
 * @to: where to tell who is charged
 *
 * Must be followed by hugetlb_restore_end(), if there is no error.
 *
 * Return: 0, or -ENOSPC if the control group of the task may not have so many.
 */
int hugetlb_restore_begin(struct inode *inode, unsigned long folios, bool charge,
			  struct hugetlb_charge *to)
{
	struct hstate *h = hstate_inode(inode);
	unsigned long pages = folios << huge_page_order(h);
	int index = hstate_index(h);

	*to = (struct hugetlb_charge) {
		.left = folios,
		.rsvd_left = folios,
		.charges = charge,
	};
	if (!charge)
		return 0;
	if (hugetlb_cgroup_charge_cgroup_rsvd(index, pages, &to->rsvd))
		return -ENOSPC;
	if (hugetlb_cgroup_charge_cgroup(index, pages, &to->cgroup)) {
		hugetlb_cgroup_uncharge_cgroup_rsvd(index, pages, to->rsvd);
		return -ENOSPC;
	}
	return 0;
}

/**
 * hugetlb_restore_folio - put a folio into a file
 * @inode: the inode of a file that nobody else has open
 * @index: where, in huge pages
 * @folio: a folio of the size of the file's pages, to which the caller has the
 *         only reference; it is consumed
 * @charge: what hugetlb_restore_begin() returned
 *
 * A shortage of memory is no error: the folio is there already. May sleep.
 *
 * Return: 0, or -EEXIST if there is something at @index, and the folio goes to the
 * pool.
 */
int hugetlb_restore_folio(struct inode *inode, pgoff_t index,
			  struct folio *folio, struct hugetlb_charge *charge)
{
	struct resv_map *map = HUGETLBFS_I(inode)->resv_map;
	struct hstate *h = hstate_inode(inode);
	long change, needed = 0;
	int err;

	adopt_folio(h, folio, charge);
	__folio_mark_uptodate(folio);

	do {
		change = region_chg(map, index, index + 1, &needed);
	} while (change == -ENOMEM);
	err = -EEXIST;
	if (change != 1)
		goto abort;
	do {
		err = hugetlb_add_to_page_cache(folio, inode->i_mapping, index);
	} while (err == -ENOMEM);
	if (err)
		goto abort;

	/* For one page, this cannot fail. */
	region_add(map, index, index + 1, needed, h, charge->rsvd);
	if (charge->rsvd)
		charge->rsvd_left--;
	folio_set_hugetlb_migratable(folio);
	folio_unlock(folio);
	folio_put(folio);
	return 0;

abort:
	region_abort(map, index, index + 1, needed);
	folio_put(folio);
	return err;
}

/**
 * hugetlb_restore_end - uncharge what was charged and is not needed
 * @inode: the same inode
 * @charge: what hugetlb_restore_begin() returned
 */
void hugetlb_restore_end(struct inode *inode, struct hugetlb_charge *charge)
{
	struct hstate *h = hstate_inode(inode);
	int index = hstate_index(h);

	if (charge->cgroup)
		hugetlb_cgroup_uncharge_cgroup(index,
					       charge->left << huge_page_order(h),
					       charge->cgroup);
	/* The regions of the file have references of their own. */
	if (charge->rsvd)
		hugetlb_cgroup_uncharge_cgroup_rsvd(index,
						    charge->rsvd_left << huge_page_order(h),
						    charge->rsvd);
}

/**
 * hugetlb_discard_folio - free a folio that is not to be put into a file
 * @folio: a restored folio, to which the caller has the only reference
 *
 * If there is a pool of its size, it goes there.
 */
void hugetlb_discard_folio(struct folio *folio)
{
	struct hstate *h = size_to_hstate(folio_size(folio));

	if (h)
		adopt_folio(h, folio, NULL);
	folio_put(folio);
}
