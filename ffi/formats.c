// SPDX-License-Identifier: GPL-2.0

/*
 * What a kernel of this tree reads, where it is C that does so: the stock
 * implementations, and Kexec Handover. Rust code has its notes beside it.
 */

#include <linux/kconfig.h>
#include <linux/kho/abi/kexec_handover.h>
#include <linux/kho/abi/luo.h>
#include <linux/kho/abi/memfd.h>
#include <linux/liveupdate_note.h>
#include <linux/stddef.h>

LIVEUPDATE_NOTE(note_kho, "kho " KHO_FDT_COMPATIBLE);

#ifdef CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT
LIVEUPDATE_NOTE(note_default, "default kho=on");
#endif

#ifdef CONFIG_LIVEUPDATE_C
LIVEUPDATE_NOTE(note_root, "root " LUO_ABI_COMPATIBLE);
#endif

#ifdef CONFIG_LIVEUPDATE_MEMFD_C
LIVEUPDATE_NOTE(note_memfd, "handler " MEMFD_LUO_FH_COMPATIBLE);
#endif
