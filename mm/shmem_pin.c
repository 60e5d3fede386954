// SPDX-License-Identifier: GPL-2.0

/*
 * Pins the pages of a shmem file whose mapping is frozen (SHMEM_F_MAPPING_FROZEN)
 * where they can stay for the next kernel: not in memory that the page allocator
 * wants back (ZONE_MOVABLE, CMA, and so KHO's scratch areas), nor in memory that
 * the next kernel will not have. Holes stay holes.
 *
 * memfd_pin_folios() does this for a device. It fills holes, and kills processes
 * for memory to move pages to; here, a shortage is an error.
 */

#include <linux/kexec_handover.h>
#include <linux/memcontrol.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/rcupdate_wait.h>
#include <linux/sched/mm.h>
#include <linux/shmem_fs.h>
#include <linux/shmem_pin.h>
#include <linux/swap.h>
#include <linux/xarray.h>

#include "internal.h"

/* So often other memory is tried than that which is not there later. */
#define TRIES	32

static bool may_stay(struct folio *folio)
{
	return folio_is_longterm_pinnable(folio) &&
	       kho_memory_stays(PFN_PHYS(folio_pfn(folio)), folio_size(folio));
}

/**
 * shmem_pin_runs - pin pages that are fit to stay where they are
 * @mapping: mapping of a shmem file, frozen
 * @index: where to begin
 * @max: how many pages, at most
 * @max_run: a run ends as soon as it has so many pages
 * @runs: where to tell what was pinned
 * @nr_runs: how many runs, at most
 *
 * The walk of memfd_pin_folios() for the common case, in place. It ends before
 * the first hole, and before the first page that needs more care. A large folio
 * is pinned once, and only its head page is read. A run has folios of one order.
 * All pages are of one zone.
 *
 * Return: how many runs there are.
 */
size_t shmem_pin_runs(struct address_space *mapping, pgoff_t index,
		      unsigned long max, unsigned long max_run,
		      struct shmem_run *runs, size_t nr_runs)
{
	XA_STATE(xas, &mapping->i_pages, index);
	struct shmem_run *run = runs, *end = run + nr_runs;
	unsigned long pfn, block = ULONG_MAX, next = ULONG_MAX, done = 0;
	unsigned long pinned = 0, nr;
	struct zone *zone = NULL;
	struct folio *folio;
	unsigned int order;
	int refs;

	rcu_read_lock();
	for (folio = xas_load(&xas); done < max; folio = xas_next(&xas)) {
		if (!folio || xa_is_value(folio) || xas_retry(&xas, folio))
			break;
		pfn = folio_pfn(folio);
		order = folio_order(folio);
		if ((pfn != next || order != run[-1].order) && run == end)
			break;

		/*
		 * Truncation and reclaim freeze the refcount under the folio
		 * lock. Either they did so before, and this fails, or they see
		 * our reference and give up.
		 */
		refs = order ? 1 : GUP_PIN_COUNTING_BIAS;
		if (!folio_ref_add_unless_zero(folio, refs))
			break;
		if (folio_test_locked(folio) || folio != xas_reload(&xas) ||
		    folio_order(folio) != order ||
		    !folio_test_uptodate(folio))
			goto put;

		if (pfn >> pageblock_order != block) {
			if (!may_stay(folio) ||
			    (zone && zone != folio_zone(folio)))
				goto put;
			zone = folio_zone(folio);
			block = pfn >> pageblock_order;
		}
		if (order && (folio->index != index + done ||
			      !folio_has_pincount(folio)))
			goto put;
		if (!folio_test_dirty(folio))
			folio_mark_dirty(folio);
		pinned++;

		if (pfn != next || order != run[-1].order) {
			run->pfn = pfn;
			run->count = 0;
			run->order = order;
			run++;
		}
		nr = 1UL << order;
		run[-1].count += nr;
		next = run[-1].count < max_run ? pfn + nr : ULONG_MAX;
		done += nr;
		if (order) {
			atomic_inc(&folio->_pincount);
			xas_advance(&xas, index + done - 1);
		}
	}
	goto unlock;
put:
	folio_put_refs(folio, refs);
unlock:
	rcu_read_unlock();

	if (pinned)
		mod_node_page_state(zone->zone_pgdat, NR_FOLL_PIN_ACQUIRED,
				    pinned);
	return run - runs;
}

/*
 * Whether the kernel itself can still allocate from a zone. Else what moves there
 * out of ZONE_MOVABLE or CMA, whose free memory is of no use to the kernel, would
 * have processes killed.
 */
static bool leaves_room(struct zone *zone)
{
	unsigned long pages = zone_page_state(zone, NR_FREE_PAGES);

	pages -= min(pages, zone_page_state(zone, NR_FREE_CMA_PAGES));
	pages += zone_page_state(zone, NR_ZONE_INACTIVE_FILE) +
		 zone_page_state(zone, NR_ZONE_ACTIVE_FILE);
	return pages > high_wmark_pages(zone);
}

static bool is_target(struct folio *folio, bool reboot)
{
	return may_stay(folio) && (reboot || leaves_room(folio_zone(folio)));
}

/*
 * Below this zone there may be more room: the page allocator goes there only when
 * this one is nearly full. Memory that was added after boot lies higher, too.
 */
static gfp_t gfp_below(gfp_t gfp)
{
	return (gfp & ~GFP_ZONEMASK) | GFP_DMA32;
}

/* Allocates a folio that may stay. Does not invoke the OOM killer. */
static struct folio *pinnable_target(struct folio *src, unsigned long reboot)
{
	gfp_t gfp = GFP_USER | __GFP_NOWARN | __GFP_RETRY_MAYFAIL;
	unsigned int order = folio_order(src);
	struct folio *folio;

	/* Instead of a large one, migration can do with single pages. */
	if (order)
		gfp |= __GFP_NORETRY;
	folio = __folio_alloc(gfp, order, folio_nid(src), NULL);
	if (!folio || is_target(folio, reboot))
		return folio;
	folio_put(folio);

	folio = __folio_alloc(gfp_below(gfp), order, folio_nid(src), NULL);
	if (!folio || is_target(folio, reboot))
		return folio;
	folio_put(folio);
	return NULL;
}

static bool charges_root(void)
{
#ifdef CONFIG_MEMCG
	return current->active_memcg &&
	       mem_cgroup_is_root(current->active_memcg);
#else
	return false;
#endif
}

/*
 * Gets a page, from swap if it is there. Where charges go to the root, as they do
 * while the machine reboots, the group of the page must neither refuse it nor keep
 * us waiting: it is charged beyond its limits at once. To reclaim from it would be
 * to scan all that was pinned already, in vain, once for each page. At other times
 * a full group is a shortage.
 */
static struct folio *read_folio(struct address_space *mapping, pgoff_t index)
{
	gfp_t gfp = mapping_gfp_constraint(mapping, ~__GFP_MOVABLE) |
		    __GFP_NOWARN;
	struct folio *folio;

	if (!charges_root())
		return shmem_read_folio_gfp(mapping, index,
					    gfp | __GFP_RETRY_MAYFAIL);

	gfp |= __GFP_NORETRY | __GFP_HIGH;
	folio = shmem_read_folio_gfp(mapping, index,
				     gfp & ~__GFP_DIRECT_RECLAIM);
	/*
	 * Either the whole machine is short of memory, and some is reclaimed; or
	 * the insertion is recorded, which may sleep. The page has been charged
	 * then, and is in the swap cache. If reclaim takes it from there in
	 * between, it is charged once more, and that is slow.
	 */
	if (folio == ERR_PTR(-ENOMEM) || folio == ERR_PTR(-EBUSY))
		folio = shmem_read_folio_gfp(mapping, index, gfp);
	return folio;
}

/**
 * shmem_make_pinnable - make pages fit to stay
 * @mapping: mapping of a shmem file, frozen
 * @index: where to begin, before the end of the file
 * @nr: how many pages; there must be no hole among them
 * @reboot: the machine reboots: processes end anyway, and what can be kept is, even
 *	if that leaves the kernel short of memory
 *
 * What is on swap is brought in, what was allocated but never written is
 * cleared, and what cannot stay in its place is moved. May sleep, for long if
 * there are many.
 *
 * Return: 0. -EAGAIN if a page that must be migrated is in use. -ENOMEM if there is
 * no memory to move it to or to read it into, or the memory cgroup that a page
 * on swap belongs to is full. -EIO if one cannot be read from swap. -EHWPOISON if
 * one is poisoned.
 */
int shmem_make_pinnable(struct address_space *mapping, pgoff_t index,
			unsigned long nr, bool reboot)
{
	enum lru_cache_drained drained = LRU_CACHE_NOT_DRAINED;
	const pgoff_t end = index + nr;
	unsigned int flags;
	LIST_HEAD(list);
	int err = 0, ret;

	flags = memalloc_pin_save();
	while (index < end) {
		struct folio *folio = read_folio(mapping, index);

		if (IS_ERR(folio)) {
			err = PTR_ERR(folio);
			break;
		}
		if (folio_contain_hwpoisoned_page(folio)) {
			folio_put(folio);
			err = -EHWPOISON;
			break;
		}
		index = folio_next_index(folio);
		if (!may_stay(folio)) {
			lru_cache_drain_for_folio(folio, 1, &drained);
			if (folio_isolate_lru(folio)) {
				list_add_tail(&folio->lru, &list);
				node_stat_mod_folio(folio, NR_ISOLATED_ANON +
						    folio_is_file_lru(folio),
						    folio_nr_pages(folio));
			} else {
				err = -EAGAIN;
			}
		}
		folio_put(folio);
		cond_resched();
	}

	if (!list_empty(&list)) {
		ret = migrate_pages(&list, pinnable_target, NULL, reboot,
				    MIGRATE_SYNC, MR_LONGTERM_PIN, NULL);
		putback_movable_pages(&list);
		if (ret == -ENOMEM)
			err = -ENOMEM;
		else if (ret && !err)
			err = -EAGAIN;
	}
	memalloc_pin_restore(flags);
	return err;
}

/**
 * shmem_count_present - count pages that are in a file or on swap, up to a hole
 * @mapping: the mapping of the file
 * @index: where to begin
 * @max: how many, at most
 */
unsigned long shmem_count_present(struct address_space *mapping, pgoff_t index,
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

/**
 * shmem_find_unpinnable - find single pages that cannot stay where they are
 * @mapping: mapping of a shmem file
 * @index: where to begin
 * @end: where to end
 * @indices: where to tell which ones
 * @max: how many, at most
 *
 * Return: how many were found.
 */
size_t shmem_find_unpinnable(struct address_space *mapping, pgoff_t index,
			     pgoff_t end, pgoff_t *indices, size_t max)
{
	XA_STATE(xas, &mapping->i_pages, index);
	unsigned long pfn, block = ULONG_MAX;
	bool stays = true;
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
			stays = may_stay(folio);
		}
		if (!stays)
			indices[count++] = xas.xa_index;
	}
	rcu_read_unlock();
	return count;
}

/**
 * shmem_alloc_block - allocate contiguous pages that may stay, each by itself
 * @nid: on which node
 * @order: 2^@order of them
 * @pfn: where to tell the number of the first one
 *
 * Return: whether there are any. The OOM killer is not invoked.
 */
bool shmem_alloc_block(int nid, unsigned int order, unsigned long *pfn)
{
	gfp_t gfp = GFP_USER | __GFP_THISNODE | __GFP_NORETRY | __GFP_NOWARN;
	struct page *unfit[TRIES], *page;
	unsigned int nr = 0;

	for (;;) {
		page = alloc_pages_node(nid, gfp, order);
		if (!page || kho_memory_stays(page_to_phys(page),
					      PAGE_SIZE << order))
			break;
		unfit[nr++] = page;
		page = NULL;
		if (nr == TRIES)
			break;
	}
	while (nr)
		__free_pages(unfit[--nr], order);
	if (page && !leaves_room(page_zone(page))) {
		__free_pages(page, order);
		page = alloc_pages_node(nid, gfp_below(gfp), order);
		if (page && !(leaves_room(page_zone(page)) &&
			      kho_memory_stays(page_to_phys(page),
					       PAGE_SIZE << order))) {
			__free_pages(page, order);
			page = NULL;
		}
	}
	if (!page)
		return false;

	split_page(page, order);
	*pfn = page_to_pfn(page);
	return true;
}

/**
 * shmem_migrate - move single pages of a file
 * @mapping: the mapping of the file
 * @indices: which pages
 * @count: how many
 * @target: tells where to move a page, as for migrate_pages()
 * @private: for @target
 *
 * Pages that cannot be migrated, as they are pinned for example, stay.
 *
 * Return: whether @target has found a place for all.
 */
bool shmem_migrate(struct address_space *mapping, const pgoff_t *indices,
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

/**
 * shmem_has_poison - whether a page of a file is known to be poisoned
 * @mapping: the mapping of the file, all of whose folios are pinned
 */
bool shmem_has_poison(struct address_space *mapping)
{
	XA_STATE(xas, &mapping->i_pages, 0);
	struct folio *folio;
	bool found = false;

	/* Fast path: no page of the machine is poisoned. */
	if (!IS_ENABLED(CONFIG_MEMORY_FAILURE) ||
	    !atomic_long_read(&num_poisoned_pages))
		return false;

	rcu_read_lock();
	xas_for_each(&xas, folio, ULONG_MAX) {
		if (xas_retry(&xas, folio) || xa_is_value(folio))
			continue;
		if (folio_contain_hwpoisoned_page(folio)) {
			found = true;
			break;
		}
		if (need_resched()) {
			xas_pause(&xas);
			cond_resched_rcu();
		}
	}
	rcu_read_unlock();
	return found;
}
