// SPDX-License-Identifier: GPL-2.0

/*
 * An empty shmem file into which only its claimant puts folios, while others may
 * have it open and mapped: what a file that a previous kernel handed over is
 * restored into.
 *
 * Under the inode lock its size is the claimant's, and nothing can be written to
 * it, allocated in it or removed from it. What is left are page faults, which
 * insert folios as soon as the file has a size, and collapse_file(), which
 * replaces folios and holes by a huge page. The former are refused by a recorder
 * that prepares nothing, see include/linux/shmem_preserve.h: as long as the file
 * is claimed, its holes are as inaccessible as what is beyond the end of a file.
 * The latter has to isolate all folios there are, so none is on an LRU list
 * until the last one is in the file.
 */

#include <linux/folio_batch.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/shmem_fs.h>
#include <linux/shmem_preserve.h>
#include <linux/shmem_target.h>
#include <linux/swap.h>

static void nothing(struct shmem_recorder *recorder)
{
}

/* The pin is the recorder's. */
static void *refuse(struct shmem_recorder *recorder, struct folio *folio,
		    pgoff_t index)
{
	unpin_folio(folio);
	return NULL;
}

static void nothing_prepared(struct shmem_recorder *recorder, void *token)
{
}

static void nothing_recorded(struct shmem_recorder *recorder,
			     struct folio *folio)
{
}

static const struct shmem_recorder_ops refuser_ops = {
	.get = nothing,
	.put = nothing,
	.prepare = refuse,
	.commit = nothing_prepared,
	.abort = nothing_prepared,
	.forget = nothing_recorded,
};

/* It has no state, so all files can share it. */
static struct shmem_recorder refuser = { .ops = &refuser_ops };

/**
 * shmem_target_claim - let nobody else put folios into an empty file
 * @inode: inode of a regular file of shmem
 *
 * Does not wait for somebody who writes to it: that may take as long as a fault
 * in what is written.
 *
 * Context: May sleep.
 * Return: 0 with the inode locked, until shmem_target_release(). Or -EPERM if the
 * file must not be written to or grow, -EBUSY if it is being preserved or
 * written to, -ENOTEMPTY if there is anything in it.
 */
int shmem_target_claim(struct inode *inode)
{
	struct shmem_inode_info *info = SHMEM_I(inode);
	int err = -EPERM;

	if (!inode_trylock(inode))
		return -EBUSY;
	if (IS_IMMUTABLE(inode) || IS_APPEND(inode) ||
	    info->seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE | F_SEAL_GROW))
		goto unlock;
	err = -EBUSY;
	if (shmem_is_frozen(info))
		goto unlock;

	shmem_record(inode, &refuser);
	/* Pages may be beyond the end, and on swap. */
	if (!i_size_read(inode) && !inode->i_mapping->nrpages && !info->swapped)
		return 0;
	shmem_record(inode, NULL);
	err = -ENOTEMPTY;
unlock:
	inode_unlock(inode);
	return err;
}

/**
 * shmem_target_complete - let the folios of a claimed file be reclaimed
 * @inode: the inode, into which nothing will be inserted any more
 *
 * Context: May sleep.
 */
void shmem_target_complete(struct inode *inode)
{
	pgoff_t start = 0, next = 0;
	struct folio_batch batch;
	unsigned int i;

	folio_batch_init(&batch);
	while (filemap_get_folios(inode->i_mapping, &next, ULONG_MAX, &batch)) {
		for (i = 0; i < folio_batch_count(&batch); i++) {
			struct folio *folio = batch.folios[i];

			/* A huge page in the place of some that were listed. */
			if (folio->index < start)
				continue;
			if (!folio_test_hwpoison(folio))
				folio_add_lru(folio);
		}
		folio_batch_release(&batch);
		start = next;
		cond_resched();
	}
}

/**
 * shmem_target_empty - take all folios out of a claimed file again
 * @inode: the inode
 *
 * Context: May sleep.
 */
void shmem_target_empty(struct inode *inode)
{
	i_size_write(inode, 0);
	/* Others may have mapped what was there. */
	unmap_mapping_range(inode->i_mapping, 0, 0, 1);
	shmem_truncate_range(inode, 0, -1);
	unmap_mapping_range(inode->i_mapping, 0, 0, 1);
}

/**
 * shmem_target_release - give a file back to everybody
 * @inode: the inode
 *
 * Context: May sleep.
 */
void shmem_target_release(struct inode *inode)
{
	inode_set_mtime_to_ts(inode, inode_set_ctime_current(inode));
	shmem_record(inode, NULL);
	inode_unlock(inode);
}
