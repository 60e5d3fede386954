/* SPDX-License-Identifier: GPL-2.0 */

/*
 * The pads of the two sample drivers: what programs see, and what survives a
 * live update. Both drivers keep to it, so either takes over from the other.
 */
#ifndef _LUO_PAD_H
#define _LUO_PAD_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* The device is /dev/luo-pad. */
#define LUO_PAD_DEVICE		"luo-pad"

/* On the device: makes an empty pad and returns a file descriptor for it. */
#define LUO_PAD_CREATE		_IO(0xBB, 0x00)

/* On a pad: the number of the pad, unlike that of all others, forever. */
#define LUO_PAD_GET_NUMBER	_IOR(0xBB, 0x01, __u64)

/* How many bytes a pad can hold. */
#define LUO_PAD_MAX		4080

/* A page that is handed over for each pad; its address is the handle. */
#define LUO_PAD_COMPATIBLE	"luo-pad-v1"

struct luo_pad_saved {
	__u64 number;
	__u64 length;
	__u8 text[LUO_PAD_MAX];
};

/* A page that is handed over for all pads; its address is the handle. */
#define LUO_PAD_NUMBERS_COMPATIBLE	"luo-pad-numbers-v1"

struct luo_pad_numbers {
	/* The last number given to a pad. */
	__u64 last;
};

#endif /* _LUO_PAD_H */
