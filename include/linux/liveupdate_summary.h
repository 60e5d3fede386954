/* SPDX-License-Identifier: GPL-2.0 */

/*
 * File handlers that describe their files, for debugfs and the log.
 *
 * Documentation/driver-api/liveupdate.rst
 */
#ifndef _LINUX_LIVEUPDATE_SUMMARY_H
#define _LINUX_LIVEUPDATE_SUMMARY_H

#include <linux/liveupdate.h>
#include <linux/types.h>

/**
 * struct liveupdate_file_description - What a handler says of its files.
 * @summarize: Optional. Describes a file in a few words: writes them to the buffer,
 *             for which @size bytes are there, without newline and NUL, and
 *             returns how many bytes it wrote. A file that is preserved is as its
 *             preserve callback left it. An incoming one does not exist until
 *             it is retrieved, and the callback must not make it; then it
 *             is there, and retrieve_status is 1.
 *
 * Nothing changes by it. No other callback runs for the file meanwhile. It may
 * sleep.
 */
struct liveupdate_file_description {
	size_t (*summarize)(struct liveupdate_file_op_args *args, char *buffer,
			    size_t size);
};

#ifdef CONFIG_LIVEUPDATE_RUST

/* As liveupdate_register_file_handler(), for one whose files can be described. */
int liveupdate_register_described_handler(struct liveupdate_file_handler *handler,
					  const struct liveupdate_file_description *description);

#endif /* CONFIG_LIVEUPDATE_RUST */
#endif /* _LINUX_LIVEUPDATE_SUMMARY_H */
