// SPDX-License-Identifier: GPL-2.0

/*
 * The symbols by which loadable drivers take part in live updates, whichever
 * implementation defines them. Rust cannot export by itself, and the C
 * implementation does not.
 */

#include <linux/export.h>
#include <linux/liveupdate.h>
#include <linux/liveupdate_subsystem.h>
#include <linux/liveupdate_summary.h>

EXPORT_SYMBOL_GPL(liveupdate_enabled);
EXPORT_SYMBOL_GPL(liveupdate_register_file_handler);
EXPORT_SYMBOL_GPL(liveupdate_unregister_file_handler);
EXPORT_SYMBOL_GPL(liveupdate_register_flb);
EXPORT_SYMBOL_GPL(liveupdate_unregister_flb);
EXPORT_SYMBOL_GPL(liveupdate_flb_get_incoming);
EXPORT_SYMBOL_GPL(liveupdate_flb_put_incoming);
EXPORT_SYMBOL_GPL(liveupdate_flb_get_outgoing);
EXPORT_SYMBOL_GPL(liveupdate_flb_put_outgoing);

#ifdef CONFIG_LIVEUPDATE_RUST
EXPORT_SYMBOL_GPL(liveupdate_register_described_handler);
EXPORT_SYMBOL_GPL(liveupdate_register_notifier);
EXPORT_SYMBOL_GPL(liveupdate_unregister_notifier);
EXPORT_SYMBOL_GPL(liveupdate_register_subsystem);
EXPORT_SYMBOL_GPL(liveupdate_unregister_subsystem);
EXPORT_SYMBOL_GPL(liveupdate_state_normal);
EXPORT_SYMBOL_GPL(liveupdate_state_updated);
EXPORT_SYMBOL_GPL(liveupdate_read_state_enter);
EXPORT_SYMBOL_GPL(liveupdate_read_state_enter_killable);
EXPORT_SYMBOL_GPL(liveupdate_read_state_exit);
#endif
