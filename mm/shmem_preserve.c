// SPDX-License-Identifier: GPL-2.0

/*
 * Insertions into frozen shmem mappings: the side of mm/shmem.c of a recorder,
 * see include/linux/shmem_preserve.h.
 *
 * The recorder of a mapping changes under the lock of its page cache, and a
 * folio is inserted under that lock. So a folio was either inserted before a
 * recorder was set, and the task that has set it finds the folio, or the recorder
 * has prepared it and learns of the insertion. What a recorder does to prepare may
 * sleep, so it happens without the lock, and once more if the recorder is
 * another one afterwards.
 *
 * A recorder outlives its mapping's use of it by references.
 */

#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/shmem_preserve.h>

#include "internal.h"

/**
 * shmem_record - set the recorder of a mapping
 * @inode: The inode, whose mapping is frozen.
 * @recorder: The recorder, or NULL for none. It must live until another one is
 *	set, and then until its last reference is put.
 *
 * Context: May sleep.
 * Return: Whether a folio was inserted since the last call of this function.
 */
bool shmem_record(struct inode *inode, struct shmem_recorder *recorder)
{
	struct shmem_inode_info *info = SHMEM_I(inode);
	bool inserted;

	xa_lock_irq(&inode->i_mapping->i_pages);
	inserted = info->inserted;
	info->inserted = false;
	info->recorder = recorder;
	xa_unlock_irq(&inode->i_mapping->i_pages);

	return inserted;
}

/**
 * shmem_record_barrier - wait for insertions whose folio can be seen
 * @inode: The inode.
 *
 * Insertions whose folio the caller has seen in the page cache are committed
 * when this returns.
 */
void shmem_record_barrier(struct inode *inode)
{
	xa_lock_irq(&inode->i_mapping->i_pages);
	xa_unlock_irq(&inode->i_mapping->i_pages);
}

/* Has a recorder, to which @insertion has a reference, prepare the folio. */
static int shmem_insertion_prepare(struct shmem_insertion *insertion)
{
	struct shmem_recorder *recorder = insertion->recorder;
	struct folio *folio = insertion->folio;

	/* It was allocated before the mapping was frozen: use another one. */
	if (!folio_is_longterm_pinnable(folio))
		return -EAGAIN;

	/*
	 * The next kernel does not know what has been initialised. User space
	 * cannot see the folio yet.
	 */
	if (!folio_test_uptodate(folio)) {
		folio_zero_range(folio, 0, folio_size(folio));
		flush_dcache_folio(folio);
		folio_mark_uptodate(folio);
	}

	if (try_grab_folio(folio, 1, FOLL_PIN))
		return -EBUSY;

	insertion->token = recorder->ops->prepare(recorder, folio,
						  insertion->index);
	return insertion->token ? 0 : -EBUSY;
}

/* The slow path of shmem_insertion_lock(), which has taken the lock. */
int __shmem_insertion_lock(struct shmem_insertion *insertion,
			   struct xa_state *xas, struct shmem_inode_info *info,
			   gfp_t gfp)
{
	int err = 0;

	while (info->recorder != insertion->recorder) {
		struct shmem_recorder *recorder = info->recorder;

		if (recorder)
			recorder->ops->get(recorder);
		xas_unlock_irq(xas);

		shmem_insertion_end(insertion);
		insertion->recorder = recorder;
		if (recorder) {
			/* Called for reclaim, on which preparing may wait. */
			err = gfpflags_allow_blocking(gfp) ?
			      shmem_insertion_prepare(insertion) : -EBUSY;
			if (err) {
				shmem_insertion_end(insertion);
				return err;
			}
		}
		xas_lock_irq(xas);
	}
	return 0;
}

void __shmem_insertion_commit(struct shmem_insertion *insertion)
{
	struct shmem_recorder *recorder = insertion->recorder;

	recorder->ops->commit(recorder, insertion->token);
	insertion->token = NULL;
}

void __shmem_insertion_end(struct shmem_insertion *insertion)
{
	struct shmem_recorder *recorder = insertion->recorder;

	if (insertion->token)
		recorder->ops->abort(recorder, insertion->token);
	recorder->ops->put(recorder);
	insertion->token = NULL;
	insertion->recorder = NULL;
}

/**
 * shmem_insertion_undo - prepare for the removal of a folio just inserted
 * @folio: The folio, locked since, to which nobody has been given access.
 *
 * Context: May sleep.
 */
void shmem_insertion_undo(struct folio *folio)
{
	struct address_space *mapping = folio->mapping;
	struct shmem_recorder *recorder;

	xa_lock_irq(&mapping->i_pages);
	recorder = SHMEM_I(mapping->host)->recorder;
	if (recorder)
		recorder->ops->get(recorder);
	xa_unlock_irq(&mapping->i_pages);

	if (recorder) {
		recorder->ops->forget(recorder, folio);
		recorder->ops->put(recorder);
	}
}
