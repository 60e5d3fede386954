/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_SHMEM_RESTORE_H
#define _LINUX_SHMEM_RESTORE_H

#include <linux/types.h>

struct folio;
struct inode;

int shmem_restore_begin(struct inode *inode, unsigned long pages);
int shmem_restore_folio(struct inode *inode, pgoff_t index,
			struct folio *folio, bool uptodate, bool lru);
int shmem_restore_pages(struct inode *inode, pgoff_t index,
			struct folio **folios, unsigned int nr, bool uptodate,
			bool lru, unsigned int *restored);
void shmem_restore_end(struct inode *inode, unsigned long pages);

#endif /* _LINUX_SHMEM_RESTORE_H */
