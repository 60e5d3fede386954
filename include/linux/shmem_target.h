/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_SHMEM_TARGET_H
#define _LINUX_SHMEM_TARGET_H

#include <linux/types.h>

struct inode;

int shmem_target_claim(struct inode *inode);
void shmem_target_complete(struct inode *inode);
void shmem_target_empty(struct inode *inode);
void shmem_target_release(struct inode *inode);

#endif /* _LINUX_SHMEM_TARGET_H */
