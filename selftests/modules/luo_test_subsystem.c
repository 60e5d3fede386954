// SPDX-License-Identifier: GPL-2.0

/*
 * A subsystem that hands a number over under any name. What it got from the
 * previous kernel is in the parameter got, if it got something; with refuse it
 * does not want it.
 */

#include <linux/liveupdate_subsystem.h>
#include <linux/module.h>
#include <linux/string.h>

static char name[LIVEUPDATE_SUBSYSTEM_COMPAT_LENGTH] = "luo-test-subsystem-v1";
module_param_string(name, name, sizeof(name), 0444);
MODULE_PARM_DESC(name, "The compatible string");

static unsigned long long number = 1;
module_param(number, ullong, 0644);
MODULE_PARM_DESC(number, "What to hand over");

static bool refuse;
module_param(refuse, bool, 0444);
MODULE_PARM_DESC(refuse, "Whether to fail to restore");

static unsigned long long got;
module_param(got, ullong, 0444);
MODULE_PARM_DESC(got, "Incoming state");

static int test_prepare(struct liveupdate_subsystem *subsystem, u64 *data)
{
	*data = number;
	return 0;
}

static void test_cancel(struct liveupdate_subsystem *subsystem, u64 data)
{
}

static int test_restore(struct liveupdate_subsystem *subsystem, u64 data)
{
	got = data;
	return refuse ? -EPROTO : 0;
}

static const struct liveupdate_subsystem_ops ops = {
	.prepare = test_prepare,
	.cancel = test_cancel,
	.restore = test_restore,
};

static struct liveupdate_subsystem subsystem = {
	.ops = &ops,
	.priority = LIVEUPDATE_CB_PRIO_WITH_DEVICES,
};

static int __init luo_test_subsystem_init(void)
{
	/* Nobody has seen it yet. */
	memcpy((char *)subsystem.compatible, name, sizeof(name));
	return liveupdate_register_subsystem(&subsystem);
}
module_init(luo_test_subsystem_init);

static void __exit luo_test_subsystem_exit(void)
{
	liveupdate_unregister_subsystem(&subsystem);
}
module_exit(luo_test_subsystem_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Live update: a subsystem of any name");
