// SPDX-License-Identifier: GPL-2.0

/*
 * State that survives a live update and belongs to no file, in C: a note.
 *
 * The note is /sys/module/luo_note_c/parameters/text; how many live updates it
 * has survived is updates beside it. A notifier saves it in a page of its own,
 * which Kexec Handover hands over under its name.
 *
 * The parameter fail (0 to 3) names the event at which to fail, for tests; what
 * happened so far is in the parameter events, a letter each.
 *
 * luo_note_rust.rs is the same in Rust, where the page is handed over by the
 * orchestrator.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/err.h>
#include <linux/io.h>
#include <linux/kexec_handover.h>
#include <linux/liveupdate.h>
#include <linux/liveupdate_subsystem.h>
#include <linux/minmax.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sizes.h>
#include <linux/string.h>
#include <linux/sysfs.h>

#include "luo_note.h"

static_assert(sizeof(struct luo_note) == SZ_4K);

static DEFINE_MUTEX(note_lock);		/* protects the note */
static struct luo_note note;

/* The page that is to be handed over, while one is prepared. */
static struct luo_note *saved;

static int fail = -1;
module_param(fail, int, 0644);
MODULE_PARM_DESC(fail, "the event to fail at, for tests");

static char events[64];
module_param_string(events, events, sizeof(events), 0444);
MODULE_PARM_DESC(events, "what the notifier was told, a letter each");

static int text_set(const char *value, const struct kernel_param *kp)
{
	guard(mutex)(&note_lock);
	note.length = min(strlen(value), sizeof(note.text));
	memcpy(note.text, value, note.length);
	return 0;
}

static int text_get(char *buffer, const struct kernel_param *kp)
{
	guard(mutex)(&note_lock);
	memcpy(buffer, note.text, note.length);
	return note.length;
}

static const struct kernel_param_ops text_ops = {
	.set = text_set,
	.get = text_get,
};

module_param_cb(text, &text_ops, NULL, 0644);
MODULE_PARM_DESC(text, "the note");

static int updates_get(char *buffer, const struct kernel_param *kp)
{
	guard(mutex)(&note_lock);
	return sysfs_emit(buffer, "%llu\n", note.updates);
}

static const struct kernel_param_ops updates_ops = {
	.get = updates_get,
};

module_param_cb(updates, &updates_ops, NULL, 0444);
MODULE_PARM_DESC(updates, "how many live updates the note has survived");

/* The last word on what the page says. */
static void note_save(void)
{
	guard(mutex)(&note_lock);
	*saved = note;
}

static int note_prepare(void)
{
	struct luo_note *page = kho_alloc_preserve(sizeof(*page));
	int err;

	if (IS_ERR(page))
		return PTR_ERR(page);
	err = kho_add_subtree(LUO_NOTE_NAME, page, sizeof(*page));
	if (err) {
		kho_unpreserve_free(page);
		return err;
	}
	saved = page;
	note_save();
	return 0;
}

static void note_cancel(void)
{
	kho_remove_subtree(saved);
	kho_unpreserve_free(saved);
	saved = NULL;
}

static int note_event(struct notifier_block *nb, unsigned long event, void *data)
{
	static const char letters[] = {
		[LIVEUPDATE_PREPARE] = 'p',
		[LIVEUPDATE_REBOOT] = 'r',
		[LIVEUPDATE_FINISH] = 'f',
		[LIVEUPDATE_CANCEL] = 'c',
	};
	const char letter[] = { letters[event], '\0' };

	strlcat(events, letter, sizeof(events));
	if (fail == (int)event && event <= LIVEUPDATE_REBOOT)
		return notifier_from_errno(-ENXIO);

	switch (event) {
	case LIVEUPDATE_PREPARE:
		return notifier_from_errno(note_prepare());
	case LIVEUPDATE_REBOOT:
		note_save();
		break;
	case LIVEUPDATE_CANCEL:
		note_cancel();
		break;
	case LIVEUPDATE_FINISH:
		break;
	}
	/* Those two cannot fail, but a test may want to see what happens. */
	return fail == (int)event ? notifier_from_errno(-ENXIO) : NOTIFY_OK;
}

static struct notifier_block note_notifier = {
	.notifier_call = note_event,
	.priority = LIVEUPDATE_CB_PRIO_AFTER_DEVICES,
};

/* Takes what the previous kernel left. It is not to be trusted. */
static int note_restore(void)
{
	struct luo_note *old;
	phys_addr_t phys;
	size_t size;
	int err;

	err = kho_retrieve_subtree(LUO_NOTE_NAME, &phys, &size);
	if (err)
		return err == -ENOENT ? 0 : err;
	if (size != sizeof(*old))
		return -EINVAL;
	old = phys_to_virt(phys);
	if (old->length > sizeof(old->text))
		return -EINVAL;

	/* The page stays: debugfs shows it. */
	guard(mutex)(&note_lock);
	note = *old;
	note.updates++;
	return 0;
}

static int __init note_init(void)
{
	int err;

	err = liveupdate_register_notifier(&note_notifier);
	if (err)
		return err;

	/* No event comes while the state is read. */
	liveupdate_read_state_enter();
	if (liveupdate_state_updated())
		err = note_restore();
	liveupdate_read_state_exit();
	if (err)
		pr_warn("the note of the previous kernel is lost: %d\n", err);
	return 0;
}
module_init(note_init);

static void __exit note_exit(void)
{
	liveupdate_unregister_notifier(&note_notifier);
	/* If it is prepared, nobody will cancel it any more. */
	if (saved)
		note_cancel();
}
module_exit(note_exit);

MODULE_AUTHOR("The LUO developers");
MODULE_DESCRIPTION("Live update sample: state in C that survives");
MODULE_LICENSE("GPL");
