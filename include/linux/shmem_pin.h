/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_SHMEM_PIN_H
#define _LINUX_SHMEM_PIN_H

#include <linux/types.h>

struct address_space;
struct folio;

/**
 * struct shmem_run - folios that follow each other in memory
 * @pfn: number of the first page
 * @count: how many pages
 * @order: order of each folio; 0 for single pages
 */
struct shmem_run {
	unsigned long pfn;
	unsigned long count;
	unsigned long order;
};

size_t shmem_pin_runs(struct address_space *mapping, pgoff_t index,
		      unsigned long max, unsigned long max_run,
		      struct shmem_run *runs, size_t nr_runs);
int shmem_make_pinnable(struct address_space *mapping, pgoff_t index,
			unsigned long nr, bool reboot);
unsigned long shmem_count_present(struct address_space *mapping, pgoff_t index,
				  unsigned long max);
size_t shmem_find_unpinnable(struct address_space *mapping, pgoff_t index,
			     pgoff_t end, pgoff_t *indices, size_t max);
bool shmem_alloc_block(int nid, unsigned int order, unsigned long *pfn);
bool shmem_migrate(struct address_space *mapping, const pgoff_t *indices,
		   size_t count,
		   struct folio *(*target)(struct folio *, unsigned long),
		   unsigned long private);
bool shmem_has_poison(struct address_space *mapping);

#endif /* _LINUX_SHMEM_PIN_H */
