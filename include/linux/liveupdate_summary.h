/* SPDX-License-Identifier: GPL-2.0 */

/*
 * A file handler that can say in a few words what a file of its is, for people
 * who look into debugfs.
 *
 * Documentation/driver-api/liveupdate.rst
 */
#ifndef _LINUX_LIVEUPDATE_SUMMARY_H
#define _LINUX_LIVEUPDATE_SUMMARY_H

#include <linux/liveupdate.h>
#include <linux/types.h>

/**
 * typedef liveupdate_summarize_t - Describes a file in a few words.
 * @args:   The file. One that is preserved is as its preserve callback left it.
 *          One that came in has no file while nobody has asked for it, which the
 *          callback must not make; else the file is there, and retrieve_status
 *          is 1.
 * @buffer: Where to write; no newline, and no NUL is needed.
 * @size:   How many bytes there is room for.
 *
 * Nothing changes by it. No other callback runs for the file meanwhile. May
 * sleep.
 *
 * Return: how many bytes were written.
 */
typedef size_t (*liveupdate_summarize_t)(struct liveupdate_file_op_args *args,
					 char *buffer, size_t size);

#ifdef CONFIG_LIVEUPDATE_RUST

/* As liveupdate_register_file_handler(), for one whose files can be described. */
int liveupdate_register_described_handler(struct liveupdate_file_handler *handler,
					  liveupdate_summarize_t summarize);

#endif /* CONFIG_LIVEUPDATE_RUST */
#endif /* _LINUX_LIVEUPDATE_SUMMARY_H */
