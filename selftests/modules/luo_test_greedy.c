// SPDX-License-Identifier: GPL-2.0

/*
 * A handler that wants each toy of luo_test_driver, and fails to preserve it.
 * It takes its time to go: until it has gone it cannot be asked any more, and
 * is still registered.
 */

#include <linux/dcache.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/liveupdate.h>
#include <linux/module.h>
#include <linux/string.h>

static unsigned int milliseconds;
module_param(milliseconds, uint, 0444);
MODULE_PARM_DESC(milliseconds, "How long it takes to go");

static bool is_toy(struct liveupdate_file_handler *handler, struct file *file)
{
	return !strcmp(file->f_path.dentry->d_name.name, "[luo_test]");
}

static int fails(struct liveupdate_file_op_args *args)
{
	return -EXDEV;
}

static void does_nothing(struct liveupdate_file_op_args *args)
{
}

static const struct liveupdate_file_ops ops = {
	.can_preserve = is_toy,
	.preserve = fails,
	.unpreserve = does_nothing,
	.retrieve = fails,
	.finish = does_nothing,
	.owner = THIS_MODULE,
};

static struct liveupdate_file_handler handler = {
	.ops = &ops, .compatible = "luo-test-greedy-v1",
};

static int __init luo_test_greedy_init(void)
{
	return liveupdate_register_file_handler(&handler);
}
module_init(luo_test_greedy_init);

static void __exit luo_test_greedy_exit(void)
{
	msleep(milliseconds);
	liveupdate_unregister_file_handler(&handler);
}
module_exit(luo_test_greedy_exit);

MODULE_AUTHOR("The LUO developers");
MODULE_DESCRIPTION("Live update: a handler that wants what others can preserve");
MODULE_LICENSE("GPL");
