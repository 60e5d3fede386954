/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Shmem files whose mapping is frozen (SHMEM_F_MAPPING_FROZEN) while their
 * content is handed over to the next kernel.
 *
 * A frozen mapping neither loses folios nor changes its size, but folios can
 * still be inserted into holes. A recorder learns of each of them before user
 * space can write to it.
 */
#ifndef _LINUX_SHMEM_PRESERVE_H
#define _LINUX_SHMEM_PRESERVE_H

#include <linux/kexec_handover.h>
#include <linux/shmem_fs.h>
#include <linux/xarray.h>

struct shmem_recorder;

/**
 * struct shmem_recorder_ops - what a recorder does
 * @get: Takes a reference to the recorder. Called with the lock of the page
 *	cache held and interrupts disabled.
 * @put: Drops a reference. May sleep.
 * @prepare: A folio is about to be inserted at an index. It is locked, up to
 *	date, and pinned for long; the pin goes to the recorder. Returns a
 *	token, or NULL if the insertion must fail. May sleep.
 * @commit: The folio of a token has been inserted. Called with the lock of the
 *	page cache held and interrupts disabled, after the store. Consumes the
 *	token. Cannot fail.
 * @abort: The folio of a token has not been inserted. Consumes the token. May
 *	sleep.
 * @forget: A folio is about to be removed again. It is locked, and nobody has
 *	been given access to it. May sleep.
 */
struct shmem_recorder_ops {
	void (*get)(struct shmem_recorder *recorder);
	void (*put)(struct shmem_recorder *recorder);
	void *(*prepare)(struct shmem_recorder *recorder, struct folio *folio,
			 pgoff_t index);
	void (*commit)(struct shmem_recorder *recorder, void *token);
	void (*abort)(struct shmem_recorder *recorder, void *token);
	void (*forget)(struct shmem_recorder *recorder, struct folio *folio);
};

/**
 * struct shmem_recorder - learns of folios that are inserted into a mapping
 * @ops: What it does with them.
 */
struct shmem_recorder {
	const struct shmem_recorder_ops *ops;
};

/**
 * struct shmem_insertion - one folio on its way into a mapping
 * @folio: The folio, locked.
 * @index: Where in the mapping it is to be.
 * @recorder: The recorder that has prepared it, if any, with a reference.
 * @token: What the recorder returned for it.
 */
struct shmem_insertion {
	struct folio *folio;
	pgoff_t index;
	struct shmem_recorder *recorder;
	void *token;
};

#ifdef CONFIG_LIVEUPDATE_MEMFD
bool shmem_record(struct inode *inode, struct shmem_recorder *recorder);
void shmem_record_barrier(struct inode *inode);
int __shmem_insertion_lock(struct shmem_insertion *insertion,
			   struct xa_state *xas, struct shmem_inode_info *info,
			   gfp_t gfp);
void __shmem_insertion_commit(struct shmem_insertion *insertion);
void __shmem_insertion_end(struct shmem_insertion *insertion);
void shmem_insertion_undo(struct folio *folio);

/**
 * shmem_insertion_lock - lock the page cache for an insertion
 * @insertion: The insertion.
 * @xas: Where it is to happen, in the page cache of @info's inode.
 * @info: The inode.
 * @gfp: Whether this may sleep. If not, and there is a recorder, it fails.
 *
 * If the mapping has a recorder, the recorder has prepared the folio when this
 * returns 0, and stays the mapping's recorder while the lock is held.
 *
 * Return: 0 with the lock of the page cache held. Without it, -EAGAIN if another
 * folio can be used, or -EBUSY if none can be recorded now.
 */
static inline int shmem_insertion_lock(struct shmem_insertion *insertion,
				       struct xa_state *xas,
				       struct shmem_inode_info *info, gfp_t gfp)
{
	xas_lock_irq(xas);
	if (likely(info->recorder == insertion->recorder))
		return 0;
	return __shmem_insertion_lock(insertion, xas, info, gfp);
}

/* The flags change under the inode lock. */
static inline bool shmem_is_frozen(struct shmem_inode_info *info)
{
	return READ_ONCE(info->flags) & SHMEM_F_MAPPING_FROZEN;
}

/* The folio is in the page cache, whose lock is held since. */
static inline void shmem_insertion_commit(struct shmem_insertion *insertion,
					  struct shmem_inode_info *info)
{
	if (unlikely(shmem_is_frozen(info)))
		info->inserted = true;
	if (unlikely(insertion->recorder))
		__shmem_insertion_commit(insertion);
}

/* The insertion is over; if it was not committed, the recorder forgets it. */
static inline void shmem_insertion_end(struct shmem_insertion *insertion)
{
	if (unlikely(insertion->recorder))
		__shmem_insertion_end(insertion);
}

/*
 * New folios of a frozen mapping come from where they can stay pinned. What has
 * a recorder is not looked at again: then they come from memory that the next
 * kernel will have.
 */
static inline gfp_t shmem_frozen_gfp(struct shmem_inode_info *info, gfp_t gfp)
{
	if (unlikely(shmem_is_frozen(info)))
		gfp &= ~__GFP_MOVABLE;
	if (unlikely(READ_ONCE(info->recorder)))
		gfp = kho_gfp(gfp);
	return gfp;
}

/* Whether a folio may be inserted where it is. */
static inline bool shmem_frozen_misplaced(struct shmem_inode_info *info,
					  struct folio *folio)
{
	return unlikely(shmem_is_frozen(info)) &&
	       !folio_is_longterm_pinnable(folio);
}
#else
static inline int shmem_insertion_lock(struct shmem_insertion *insertion,
				       struct xa_state *xas,
				       struct shmem_inode_info *info, gfp_t gfp)
{
	xas_lock_irq(xas);
	return 0;
}

static inline void shmem_insertion_commit(struct shmem_insertion *insertion,
					  struct shmem_inode_info *info)
{
}

static inline void shmem_insertion_end(struct shmem_insertion *insertion)
{
}

static inline void shmem_insertion_undo(struct folio *folio)
{
}

static inline gfp_t shmem_frozen_gfp(struct shmem_inode_info *info, gfp_t gfp)
{
	return gfp;
}

static inline bool shmem_frozen_misplaced(struct shmem_inode_info *info,
					  struct folio *folio)
{
	return false;
}
#endif /* CONFIG_LIVEUPDATE_MEMFD */

#endif /* _LINUX_SHMEM_PRESERVE_H */
