/* SPDX-License-Identifier: GPL-2.0 */

/*
 * File handlers that describe their files, for debugfs and the log, and that
 * retrieve into files which there are already.
 *
 * Documentation/driver-api/liveupdate.rst
 */
#ifndef _LINUX_LIVEUPDATE_SUMMARY_H
#define _LINUX_LIVEUPDATE_SUMMARY_H

#include <linux/liveupdate.h>
#include <linux/types.h>

/**
 * struct liveupdate_file_description - What a handler can do with its files besides.
 * @summarize: Optional. Describes a file in a few words: writes them to the buffer,
 *             for which @size bytes are there, without newline and NUL, and
 *             returns how many bytes it wrote. A file that is preserved is as its
 *             preserve callback left it. An incoming one does not exist until
 *             it is retrieved, and the callback must not make it; then it
 *             is there, and retrieve_status is 1. Nothing changes by it.
 * @retrieve_into: Optional. As the retrieve callback, for a file of the caller's
 *             that is to become what was handed over: the one in the arguments.
 *             On success a reference to it is handed over in its place. Without
 *             this callback such a request fails by -EOPNOTSUPP.
 *
 * No other callback runs for the file meanwhile. They may sleep.
 */
struct liveupdate_file_description {
	size_t (*summarize)(struct liveupdate_file_op_args *args, char *buffer,
			    size_t size);
	int (*retrieve_into)(struct liveupdate_file_op_args *args);
};

#ifdef CONFIG_LIVEUPDATE_RUST

/* As liveupdate_register_file_handler(), for one whose files can be described. */
int liveupdate_register_described_handler(struct liveupdate_file_handler *handler,
					  const struct liveupdate_file_description *description);

#endif /* CONFIG_LIVEUPDATE_RUST */
#endif /* _LINUX_LIVEUPDATE_SUMMARY_H */
