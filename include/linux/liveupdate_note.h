/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_LIVEUPDATE_NOTE_H
#define _LINUX_LIVEUPDATE_NOTE_H

#include <linux/compiler.h>
#include <linux/types.h>

struct liveupdate_note {
	u32 owner_len;
	u32 text_len;
	u32 type;
	char owner[12];
	char text[64];
};

#define LIVEUPDATE_NOTE_OWNER "LiveUpdate"

/**
 * LIVEUPDATE_NOTE() - Say that the kernel image reads a live-update format
 * @id: An identifier, unique in the file
 * @format: A string constant of a kind (root, record, handler, flb, subsystem),
 *          a blank, and the compatible string
 *
 * The text becomes an ELF note of the owner "LiveUpdate", which can be found in
 * an image without running it, also in a compressed one.
 */
#define LIVEUPDATE_NOTE(id, format)					\
	static const struct liveupdate_note id				\
	__used __section(".note.liveupdate") __aligned(4) = {		\
		.owner_len = sizeof(LIVEUPDATE_NOTE_OWNER),		\
		.text_len = sizeof_field(struct liveupdate_note, text),	\
		.type = 1,						\
		.owner = LIVEUPDATE_NOTE_OWNER,				\
		.text = format,						\
	}

#endif /* _LINUX_LIVEUPDATE_NOTE_H */
