/* SPDX-License-Identifier: GPL-2.0 */

/*
 * The notes of the two sample subsystems, as they are handed over.
 */
#ifndef _LUO_NOTE_H
#define _LUO_NOTE_H

#include <linux/types.h>

/* How many bytes a note can have. */
#define LUO_NOTE_MAX		4080

/*
 * A page. It is handed over as the blob of this name of Kexec Handover (the sample in
 * C), or as a page whose address is the number of the subsystem (in Rust).
 */
#define LUO_NOTE_NAME		"luo-note"

struct luo_note {
	/* How many live updates it has survived. */
	__u64 updates;
	__u64 length;
	__u8 text[LUO_NOTE_MAX];
};

#endif /* _LUO_NOTE_H */
