// SPDX-License-Identifier: GPL-2.0

/*
 * Keeps the machine running for a while when it reboots, after all sessions
 * have been written down: so that tests can see what is possible then.
 */

#include <linux/delay.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/reboot.h>

static unsigned int milliseconds = 1000;
module_param(milliseconds, uint, 0444);
MODULE_PARM_DESC(milliseconds, "How long");

static int linger(struct notifier_block *block, unsigned long event, void *data)
{
	msleep(milliseconds);
	return NOTIFY_DONE;
}

static struct notifier_block lingering = { .notifier_call = linger };

static int __init luo_test_linger_init(void)
{
	return register_reboot_notifier(&lingering);
}
module_init(luo_test_linger_init);

static void __exit luo_test_linger_exit(void)
{
	unregister_reboot_notifier(&lingering);
}
module_exit(luo_test_linger_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Live update: a reboot that takes its time");
