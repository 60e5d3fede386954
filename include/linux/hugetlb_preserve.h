/* SPDX-License-Identifier: GPL-2.0 */
/*
 * HugeTLB files whose content is handed over to the next kernel.
 *
 * A frozen file neither loses folios nor changes its size: what would do that
 * fails with EPERM. Folios can still be inserted into holes; a recorder learns
 * of each of them before user space can write to it.
 *
 * Folios that the previous kernel handed over count as in use in the pool of
 * their size, from the boot on as far as it is known how many there are.
 */
#ifndef _LINUX_HUGETLB_PRESERVE_H
#define _LINUX_HUGETLB_PRESERVE_H

#include <linux/hugetlb.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>

struct hugetlb_cgroup;
struct hugetlb_recorder;

/**
 * struct hugetlb_recorder_ops - what a recorder does
 * @get: Takes a reference to the recorder. Called with the lock of the page
 *	cache held and interrupts disabled.
 * @put: Drops a reference. May sleep.
 * @record: A folio is in the file at an index, or is about to be. It is locked,
 *	up to date, and pinned for long; the pin goes to the recorder. Returns
 *	an errno if that cannot be recorded. May sleep.
 * @forget: Such a folio is not in the file after all. It is locked, and nobody
 *	was given access to it. May sleep.
 */
struct hugetlb_recorder_ops {
	void (*get)(struct hugetlb_recorder *recorder);
	void (*put)(struct hugetlb_recorder *recorder);
	int (*record)(struct hugetlb_recorder *recorder, struct folio *folio,
		      pgoff_t index);
	void (*forget)(struct hugetlb_recorder *recorder, struct folio *folio);
};

/**
 * struct hugetlb_recorder - learns of folios that are inserted into a file
 * @ops: What it does with them.
 */
struct hugetlb_recorder {
	const struct hugetlb_recorder_ops *ops;
};

/**
 * struct hugetlb_charge - charges for folios that are to be put into a file
 * @cgroup: who pays, if anybody
 * @rsvd: likewise, for reservations
 * @left: for how many more folios @cgroup has been charged
 * @rsvd_left: likewise, @rsvd
 * @charges: whether the task is charged at all, for memory as well
 */
struct hugetlb_charge {
	struct hugetlb_cgroup *cgroup;
	struct hugetlb_cgroup *rsvd;
	unsigned long left;
	unsigned long rsvd_left;
	bool charges;
};

/**
 * struct hugetlb_range - some huge pages of a file
 * @from: index of the first one, in huge pages
 * @to: index of the one behind the last
 */
struct hugetlb_range {
	unsigned long from;
	unsigned long to;
};

#ifdef CONFIG_LIVEUPDATE_HUGETLB
bool hugetlb_memfd(struct file *file);
int hugetlb_freeze(struct inode *inode);
void hugetlb_thaw(struct inode *inode);
void hugetlb_record(struct inode *inode, struct hugetlb_recorder *recorder);
int hugetlb_insert_folio(struct address_space *mapping, struct folio *folio,
			 pgoff_t index);
size_t hugetlb_reserved_ranges(struct inode *inode, pgoff_t index,
			       struct hugetlb_range *ranges, size_t max);

int hugetlb_restore_reserve(struct inode *inode, struct hugetlb_range range);
int hugetlb_restore_begin(struct inode *inode, unsigned long folios, bool charge,
			  struct hugetlb_charge *to);
int hugetlb_restore_folio(struct inode *inode, pgoff_t index,
			  struct folio *folio, struct hugetlb_charge *charge);
void hugetlb_restore_end(struct inode *inode, struct hugetlb_charge *charge);
void hugetlb_discard_folio(struct folio *folio);

bool hugetlb_expect(unsigned int order, unsigned long pfn, unsigned long folios);
void hugetlb_expected_begin(struct hstate *h);
void hugetlb_expected_end(struct hstate *h);

static inline bool hugetlb_frozen(struct inode *inode)
{
	return READ_ONCE(HUGETLBFS_I(inode)->frozen);
}

/*
 * What has a recorder is not looked at again: then new folios come from memory
 * where they can stay pinned.
 */
static inline unsigned int hugetlb_pin_save(struct inode *inode)
{
	if (unlikely(READ_ONCE(HUGETLBFS_I(inode)->recorder)))
		return memalloc_pin_save();
	return 0;
}

static inline void hugetlb_pin_restore(unsigned int flags)
{
	memalloc_pin_restore(flags);
}
#else
static inline int hugetlb_insert_folio(struct address_space *mapping,
				       struct folio *folio, pgoff_t index)
{
	return __filemap_add_folio(mapping, folio, index, GFP_KERNEL, NULL);
}

static inline void hugetlb_expected_begin(struct hstate *h)
{
}

static inline void hugetlb_expected_end(struct hstate *h)
{
}

static inline bool hugetlb_frozen(struct inode *inode)
{
	return false;
}

static inline unsigned int hugetlb_pin_save(struct inode *inode)
{
	return 0;
}

static inline void hugetlb_pin_restore(unsigned int flags)
{
}
#endif /* CONFIG_LIVEUPDATE_HUGETLB */

#endif /* _LINUX_HUGETLB_PRESERVE_H */
