// SPDX-License-Identifier: GPL-2.0

/*
 * Helpers for the shmem abstractions: inline functions of files and of the page
 * cache.
 */

#ifdef CONFIG_LIVEUPDATE_MEMFD

#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>

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

/* Folios. */

__rust_helper struct page *rust_helper_pfn_to_page(unsigned long pfn)
{
	return pfn_to_page(pfn);
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
