// SPDX-License-Identifier: GPL-2.0

/*
 * Helpers for the shmem abstractions: inline functions of the page cache, and
 * functions of mm/ that are not declared for the rest of the kernel.
 */

#ifdef CONFIG_LIVEUPDATE_MEMFD

#include <linux/highmem.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include "../../mm/internal.h"

/* Inodes and mappings. */

__rust_helper size_t rust_helper_dentry_name_len(const struct dentry *dentry)
{
	return READ_ONCE(dentry->d_name.len);
}

__rust_helper void rust_helper_inode_lock(struct inode *inode)
{
	inode_lock(inode);
}

__rust_helper void rust_helper_inode_unlock(struct inode *inode)
{
	inode_unlock(inode);
}

__rust_helper loff_t rust_helper_i_size_read(const struct inode *inode)
{
	return i_size_read(inode);
}

__rust_helper void rust_helper_i_size_write(struct inode *inode, loff_t size)
{
	i_size_write(inode, size);
}

__rust_helper bool rust_helper_shmem_file(struct file *file)
{
	return shmem_file(file);
}

__rust_helper struct shmem_inode_info *rust_helper_SHMEM_I(struct inode *inode)
{
	return SHMEM_I(inode);
}

__rust_helper void rust_helper_shmem_freeze(struct inode *inode, bool freeze)
{
	shmem_freeze(inode, freeze);
}

__rust_helper bool rust_helper_shmem_frozen(struct inode *inode)
{
	return SHMEM_I(inode)->flags & SHMEM_F_MAPPING_FROZEN;
}

__rust_helper unsigned int
rust_helper_mapping_max_folio_order(const struct address_space *mapping)
{
	return mapping_max_folio_order(mapping);
}

/* Pages that follow each other in memory: a large folio, or single pages. */
struct shmem_run {
	unsigned long pfn;
	unsigned long count;
	unsigned long order;
};

/*
 * Pins the pages from @index on, at most @max, if they are fit to stay where
 * they are: the walk of memfd_pin_folios() for the common case, in place. It
 * ends before the first page that needs more care. Tells where they are in
 * @nr_runs runs at most, of one zone each, and returns in how many. At most
 * @max_run single pages are one run.
 */
__rust_helper size_t rust_helper_shmem_pin_runs(struct address_space *mapping,
						pgoff_t index, unsigned long max,
						unsigned long max_run,
						void *runs, size_t nr_runs)
{
	XA_STATE(xas, &mapping->i_pages, index);
	struct shmem_run *run = runs, *end = run + nr_runs;
	unsigned long pfn, block = ULONG_MAX, next = ULONG_MAX, done = 0;
	unsigned long pinned = 0, count = 0;
	struct zone *zone = NULL;
	struct folio *folio;
	bool large;
	int refs;

	rcu_read_lock();
	for (folio = xas_load(&xas); done < max; folio = xas_next(&xas)) {
		if (!folio || xa_is_value(folio) || xas_retry(&xas, folio))
			break;
		pfn = folio_pfn(folio);
		large = folio_test_large(folio);
		if ((pfn != next || large) && run == end)
			break;

		/*
		 * Who takes a page out of a file holds its lock from the look
		 * at its references on: it was in time, or sees this one.
		 */
		refs = large ? 1 : GUP_PIN_COUNTING_BIAS;
		if (!folio_ref_add_unless_zero(folio, refs))
			break;
		if (folio_test_locked(folio) || folio != xas_reload(&xas) ||
		    folio_test_large(folio) != large ||
		    !folio_test_uptodate(folio))
			goto put;

		if (pfn >> pageblock_order != block) {
			if (!folio_is_longterm_pinnable(folio) ||
			    (zone && zone != folio_zone(folio)))
				goto put;
			zone = folio_zone(folio);
			block = pfn >> pageblock_order;
		}
		if (large && (folio->index != index + done ||
			      !folio_has_pincount(folio)))
			goto put;
		if (!folio_test_dirty(folio))
			folio_mark_dirty(folio);
		pinned++;

		if (large) {
			atomic_inc(&folio->_pincount);
			run->pfn = pfn;
			run->count = folio_nr_pages(folio);
			run->order = folio_order(folio);
			done += run++->count;
			next = ULONG_MAX;
			xas_advance(&xas, index + done - 1);
			continue;
		}
		if (pfn != next) {
			run->pfn = pfn;
			run->order = 0;
			count = 0;
			run++;
		}
		run[-1].count = ++count;
		next = count < max_run ? pfn + 1 : ULONG_MAX;
		done++;
	}
	goto unlock;
put:
	folio_put_refs(folio, refs);
unlock:
	rcu_read_unlock();

	if (pinned)
		mod_node_page_state(zone->zone_pgdat, NR_FOLL_PIN_ACQUIRED,
				    pinned);
	return run - (struct shmem_run *)runs;
}

/*
 * How many pages from @index on are in a file or on swap, without a hole, at
 * most @max.
 */
__rust_helper unsigned long
rust_helper_shmem_present(struct address_space *mapping, pgoff_t index,
			  unsigned long max)
{
	XA_STATE(xas, &mapping->i_pages, index);
	pgoff_t next = index;
	unsigned int order;
	void *entry;

	rcu_read_lock();
	for (entry = xas_load(&xas); entry && next - index < max;) {
		if (xas_retry(&xas, entry)) {
			entry = xas_load(&xas);
			continue;
		}
		order = xas_get_order(&xas);
		next = (next | ((1UL << order) - 1)) + 1;
		if (order) {
			xas_set(&xas, next);
			entry = xas_load(&xas);
		} else {
			entry = xas_next(&xas);
		}
	}
	rcu_read_unlock();
	return min(next - index, max);
}

/*
 * Finds single pages of a file that cannot stay for long where they are, from
 * @index up to @end. Tells where in the file they are, and returns how many
 * there are, at most @max.
 */
__rust_helper size_t
rust_helper_shmem_find_restless(struct address_space *mapping, pgoff_t index,
				pgoff_t end, pgoff_t *indices, size_t max)
{
	XA_STATE(xas, &mapping->i_pages, index);
	unsigned long pfn, block = ULONG_MAX;
	bool restless = false;
	struct folio *folio;
	size_t count = 0;

	rcu_read_lock();
	xas_for_each(&xas, folio, end - 1) {
		if (count == max)
			break;
		if (xas_retry(&xas, folio) || xa_is_value(folio) ||
		    folio_test_large(folio))
			continue;
		pfn = folio_pfn(folio);
		if (pfn >> pageblock_order != block) {
			block = pfn >> pageblock_order;
			restless = !folio_is_longterm_pinnable(folio);
		}
		if (restless)
			indices[count++] = xas.xa_index;
	}
	rcu_read_unlock();
	return count;
}

/* Allocates 2^@order pages on a node that follow each other, each by itself. */
__rust_helper bool rust_helper_shmem_alloc_block(int nid, unsigned int order,
						 unsigned long *pfn)
{
	gfp_t gfp = GFP_HIGHUSER | __GFP_THISNODE | __GFP_NORETRY | __GFP_NOWARN;
	struct page *page = alloc_pages_node(nid, gfp, order);

	if (!page)
		return false;
	split_page(page, order);
	*pfn = page_to_pfn(page);
	return true;
}

/*
 * Moves single pages of a file, those at @indices, to where @target says. What
 * cannot be moved, as somebody has pinned it, for one, stays where it is.
 * Returns whether @target has found a place for all.
 */
__rust_helper bool
rust_helper_shmem_migrate(struct address_space *mapping, const pgoff_t *indices,
			  size_t count,
			  struct folio *(*target)(struct folio *, unsigned long),
			  unsigned long private)
{
	struct folio *folio;
	LIST_HEAD(list);
	int err;

	for (; count; count--) {
		folio = filemap_get_folio(mapping, *indices++);
		if (IS_ERR(folio))
			continue;
		if (!folio_test_large(folio) && !folio_maybe_dma_pinned(folio) &&
		    folio_isolate_lru(folio)) {
			list_add_tail(&folio->lru, &list);
			node_stat_add_folio(folio, NR_ISOLATED_ANON +
						   folio_is_file_lru(folio));
		}
		folio_put(folio);
	}
	if (list_empty(&list))
		return true;

	err = migrate_pages(&list, target, NULL, private, MIGRATE_SYNC,
			    MR_LONGTERM_PIN, NULL);
	if (err)
		putback_movable_pages(&list);
	return err != -ENOMEM;
}

/* Folios. */

__rust_helper struct page *rust_helper_pfn_to_page(unsigned long pfn)
{
	return pfn_to_page(pfn);
}

__rust_helper pgoff_t rust_helper_folio_next_index(const struct folio *folio)
{
	return folio_next_index(folio);
}

__rust_helper unsigned long rust_helper_folio_pfn(const struct folio *folio)
{
	return folio_pfn(folio);
}

__rust_helper bool rust_helper_pfns_share_zone(unsigned long one,
					       unsigned long other)
{
	return page_zone(pfn_to_page(one)) == page_zone(pfn_to_page(other));
}

__rust_helper void rust_helper_folio_lock(struct folio *folio)
{
	folio_lock(folio);
}

__rust_helper bool rust_helper_folio_test_uptodate(const struct folio *folio)
{
	return folio_test_uptodate(folio);
}

__rust_helper void rust_helper_folio_mark_uptodate(struct folio *folio)
{
	folio_mark_uptodate(folio);
}

__rust_helper void rust_helper_folio_zero_range(struct folio *folio,
						size_t start, size_t length)
{
	folio_zero_range(folio, start, length);
}

__rust_helper void rust_helper_flush_dcache_folio(struct folio *folio)
{
	flush_dcache_folio(folio);
}

/* The current task. */

__rust_helper int rust_helper_cond_resched(void)
{
	return cond_resched();
}

__rust_helper int rust_helper_fatal_signal_pending(struct task_struct *task)
{
	return fatal_signal_pending(task);
}

#endif /* CONFIG_LIVEUPDATE_MEMFD */
