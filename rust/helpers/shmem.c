// SPDX-License-Identifier: GPL-2.0

/*
 * Helpers for the shmem abstractions: inline functions of the page cache, and
 * functions of mm/ that are not declared for the rest of the kernel.
 */

#ifdef CONFIG_LIVEUPDATE_MEMFD

#include <linux/highmem.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <linux/wait.h>
#include "../../mm/internal.h"

/* Inodes and mappings. */

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

/*
 * While a hole is punched, mm/shmem.c has page faults on it wait: the one who
 * punches leaves word in inode->i_private, under the inode lock. The structure
 * is private to that file; its beginning is known here because nothing else
 * keeps pages from appearing in a mapping without harm to whoever touches it.
 */
struct shmem_closed {
	wait_queue_head_t *waitq;
	pgoff_t start;
	pgoff_t next;
	pgoff_t unused[2];

	wait_queue_head_t waiters;
};

__rust_helper void *rust_helper_shmem_close(struct inode *inode)
{
	struct shmem_closed *closed = kzalloc_obj(*closed);

	if (!closed)
		return NULL;

	init_waitqueue_head(&closed->waiters);
	closed->waitq = &closed->waiters;
	closed->next = ULONG_MAX;

	/* Held until shmem_open(), perhaps for many inodes: not for lockdep. */
	inode_lock(inode);
	rwsem_release(&inode->i_rwsem.dep_map, _THIS_IP_);

	spin_lock(&inode->i_lock);
	WRITE_ONCE(inode->i_private, closed);
	spin_unlock(&inode->i_lock);
	return closed;
}

__rust_helper void rust_helper_shmem_open(struct inode *inode, void *opaque)
{
	struct shmem_closed *closed = opaque;

	spin_lock(&inode->i_lock);
	WRITE_ONCE(inode->i_private, NULL);
	wake_up_all(&closed->waiters);
	spin_unlock(&inode->i_lock);

	rwsem_acquire(&inode->i_rwsem.dep_map, 0, 1, _THIS_IP_);
	inode_unlock(inode);
	kfree(closed);
}

__rust_helper int
rust_helper_mapping_writably_mapped(const struct address_space *mapping)
{
	return mapping_writably_mapped(mapping);
}

__rust_helper gfp_t
rust_helper_mapping_gfp_nofail(const struct address_space *mapping)
{
	return mapping_gfp_mask(mapping) | __GFP_NOFAIL;
}

__rust_helper unsigned int
rust_helper_mapping_max_folio_order(const struct address_space *mapping)
{
	return mapping_max_folio_order(mapping);
}

__rust_helper int
rust_helper_shmem_add_to_page_cache(struct folio *folio,
				    struct address_space *mapping,
				    pgoff_t index, void *expected, gfp_t gfp)
{
	return shmem_add_to_page_cache(folio, mapping, index, expected, gfp);
}

__rust_helper int rust_helper_shmem_inode_acct_blocks(struct inode *inode,
						      long pages)
{
	return shmem_inode_acct_blocks(inode, pages);
}

__rust_helper bool rust_helper_shmem_recalc_inode(struct inode *inode,
						  long alloced, long swapped)
{
	return shmem_recalc_inode(inode, alloced, swapped);
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

__rust_helper struct zone *rust_helper_folio_zone(const struct folio *folio)
{
	return folio_zone(folio);
}

__rust_helper void rust_helper_folio_lock(struct folio *folio)
{
	folio_lock(folio);
}

__rust_helper void rust_helper___folio_set_locked(struct folio *folio)
{
	__folio_set_locked(folio);
}

__rust_helper void rust_helper___folio_set_swapbacked(struct folio *folio)
{
	__folio_set_swapbacked(folio);
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

__rust_helper int rust_helper_mem_cgroup_charge(struct folio *folio,
						struct mm_struct *mm, gfp_t gfp)
{
	return mem_cgroup_charge(folio, mm, gfp);
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
