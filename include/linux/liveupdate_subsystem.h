/* SPDX-License-Identifier: GPL-2.0 */

/*
 * Live update for code that has state of its own to carry, rather than files:
 * it is told when an update is prepared, when it happens, when it is called
 * off, and when it is finished in the new kernel.
 *
 * Two ways to take part: a notifier is told and does the rest by itself (its
 * memory is preserved by Kexec Handover); a subsystem also has 64 bits that the
 * orchestrator hands over for it, under its compatible string.
 *
 * Documentation/driver-api/liveupdate.rst
 */
#ifndef _LINUX_LIVEUPDATE_SUBSYSTEM_H
#define _LINUX_LIVEUPDATE_SUBSYSTEM_H

#include <linux/errno.h>
#include <linux/notifier.h>
#include <linux/types.h>

/**
 * enum liveupdate_event - What a notifier is told.
 * @LIVEUPDATE_PREPARE: A live update will be tried. User space still runs, so
 *                      this is the time for long work. An error calls it off,
 *                      and those that were told before are told
 *                      %LIVEUPDATE_CANCEL, the last one first.
 * @LIVEUPDATE_REBOOT:  The kexec is about to happen: the last chance to save
 *                      something. An error refuses it, and everybody is told
 *                      %LIVEUPDATE_CANCEL.
 * @LIVEUPDATE_FINISH:  The new kernel is in use, and the live update finished: state
 *                      of the old kernel can be released. Must not fail.
 * @LIVEUPDATE_CANCEL:  The live update that was prepared does not happen. Must
 *                      not fail.
 */
enum liveupdate_event {
	LIVEUPDATE_PREPARE,
	LIVEUPDATE_REBOOT,
	LIVEUPDATE_FINISH,
	LIVEUPDATE_CANCEL,
};

/**
 * enum liveupdate_cb_priority - When one is told of an event.
 * @LIVEUPDATE_CB_PRIO_BEFORE_DEVICES: Before devices are.
 * @LIVEUPDATE_CB_PRIO_WITH_DEVICES:   Together with devices.
 * @LIVEUPDATE_CB_PRIO_AFTER_DEVICES:  After devices are.
 *
 * Of one priority, who registered first is told first. %LIVEUPDATE_CANCEL goes
 * the other way round.
 */
enum liveupdate_cb_priority {
	LIVEUPDATE_CB_PRIO_BEFORE_DEVICES,
	LIVEUPDATE_CB_PRIO_WITH_DEVICES,
	LIVEUPDATE_CB_PRIO_AFTER_DEVICES,
};

struct liveupdate_subsystem;

/**
 * struct liveupdate_subsystem_ops - Callbacks of a subsystem.
 * @prepare: Required. As %LIVEUPDATE_PREPARE; sets *data to what is handed over.
 * @reboot:  Optional. As %LIVEUPDATE_REBOOT; may change *data.
 * @cancel:  Required. As %LIVEUPDATE_CANCEL, with the data of @prepare.
 * @restore: Required. Gets the data that the previous kernel's subsystem of the
 *           same compatible string left, once, from within the registration. It
 *           is input from outside. An error is reported, and is all that happens.
 * @finish:  Optional. As %LIVEUPDATE_FINISH.
 *
 * All may sleep. None may register or unregister.
 */
struct liveupdate_subsystem_ops {
	int (*prepare)(struct liveupdate_subsystem *subsystem, u64 *data);
	int (*reboot)(struct liveupdate_subsystem *subsystem, u64 *data);
	void (*cancel)(struct liveupdate_subsystem *subsystem, u64 data);
	int (*restore)(struct liveupdate_subsystem *subsystem, u64 data);
	void (*finish)(struct liveupdate_subsystem *subsystem);
};

#define LIVEUPDATE_SUBSYSTEM_COMPAT_LENGTH	48

/**
 * struct liveupdate_subsystem - State that belongs to no file.
 * @ops:        Callbacks.
 * @compatible: Names the subsystem and the version of what @data means.
 * @priority:   When it is told.
 */
struct liveupdate_subsystem {
	const struct liveupdate_subsystem_ops *ops;
	const char compatible[LIVEUPDATE_SUBSYSTEM_COMPAT_LENGTH];
	enum liveupdate_cb_priority priority;
};

#ifdef CONFIG_LIVEUPDATE_RUST

/*
 * A notifier's priority is one of enum liveupdate_cb_priority. Registering what
 * is registered gives -EEXIST, unregistering what is not -ENOENT; without live
 * update both give -EOPNOTSUPP.
 */
int liveupdate_register_notifier(struct notifier_block *nb);
int liveupdate_unregister_notifier(struct notifier_block *nb);

/*
 * Unregistering what is prepared cancels it first. -EEXIST also if another one
 * has the compatible string, -ENOSPC if there are too many.
 */
int liveupdate_register_subsystem(struct liveupdate_subsystem *subsystem);
int liveupdate_unregister_subsystem(struct liveupdate_subsystem *subsystem);

/* Whether no event is pending: neither prepared, nor unfinished after one. */
bool liveupdate_state_normal(void);

/* Whether this boot is a live update, and %LIVEUPDATE_FINISH is still to come. */
bool liveupdate_state_updated(void);

/*
 * While somebody reads, the two above do not change: no event is told. Do not
 * register or unregister in between.
 */
void liveupdate_read_state_enter(void);
int __must_check liveupdate_read_state_enter_killable(void);
void liveupdate_read_state_exit(void);

#else /* CONFIG_LIVEUPDATE_RUST */

static inline int liveupdate_register_notifier(struct notifier_block *nb)
{
	return -EOPNOTSUPP;
}

static inline int liveupdate_unregister_notifier(struct notifier_block *nb)
{
	return -EOPNOTSUPP;
}

static inline int liveupdate_register_subsystem(struct liveupdate_subsystem *subsystem)
{
	return -EOPNOTSUPP;
}

static inline int liveupdate_unregister_subsystem(struct liveupdate_subsystem *subsystem)
{
	return -EOPNOTSUPP;
}

static inline bool liveupdate_state_normal(void)
{
	return true;
}

static inline bool liveupdate_state_updated(void)
{
	return false;
}

static inline void liveupdate_read_state_enter(void) { }

static inline int __must_check liveupdate_read_state_enter_killable(void)
{
	return 0;
}

static inline void liveupdate_read_state_exit(void) { }

#endif /* CONFIG_LIVEUPDATE_RUST */
#endif /* _LINUX_LIVEUPDATE_SUBSYSTEM_H */
