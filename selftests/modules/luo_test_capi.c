// SPDX-License-Identifier: GPL-2.0

/*
 * What <linux/liveupdate.h> promises to drivers, one check after the other.
 * Loading the module runs them, and fails if one does.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/liveupdate.h>
#include <linux/module.h>
#include <linux/slab.h>

static bool strict = true;
module_param(strict, bool, 0444);
MODULE_PARM_DESC(strict, "Also check what the C implementation warns about or leaves open");

static int failures;

#define expect(value, wanted) do {					\
	int got = (value), want = (wanted);				\
									\
	if (got != want) {						\
		pr_err("line %d: %s is %d, not %d\n", __LINE__, #value,	\
		       got, want);					\
		failures++;						\
	}								\
} while (0)

static bool wants_none(struct liveupdate_file_handler *handler,
		       struct file *file)
{
	return false;
}

static int fails(struct liveupdate_file_op_args *args)
{
	return -ENXIO;
}

static void does_nothing(struct liveupdate_file_op_args *args)
{
}

static int flb_fails(struct liveupdate_flb_op_args *args)
{
	return -ENXIO;
}

static void flb_does_nothing(struct liveupdate_flb_op_args *args)
{
}

static const struct liveupdate_file_ops ops = {
	.can_preserve = wants_none,
	.preserve = fails,
	.unpreserve = does_nothing,
	.retrieve = fails,
	.finish = does_nothing,
	.owner = THIS_MODULE,
};

static struct liveupdate_file_handler handler = {
	.ops = &ops, .compatible = "luo-test-capi-1",
};

static struct liveupdate_file_handler same_name = {
	.ops = &ops, .compatible = "luo-test-capi-1",
};

static struct liveupdate_file_handler other = {
	.ops = &ops, .compatible = "luo-test-capi-2",
};

static const struct liveupdate_flb_ops flb_ops = {
	.preserve = flb_fails,
	.unpreserve = flb_does_nothing,
	.retrieve = flb_fails,
	.finish = flb_does_nothing,
	.owner = THIS_MODULE,
};

static struct liveupdate_flb flb = {
	.ops = &flb_ops, .compatible = "luo-test-capi-flb",
};

static struct liveupdate_flb flb_same_name = {
	.ops = &flb_ops, .compatible = "luo-test-capi-flb",
};

static void handlers_need_their_callbacks(void)
{
	struct liveupdate_file_ops incomplete[5];
	struct liveupdate_file_handler bad = { .compatible = "luo-test-capi-bad" };
	int i;

	for (i = 0; i < ARRAY_SIZE(incomplete); i++)
		incomplete[i] = ops;
	incomplete[0].can_preserve = NULL;
	incomplete[1].preserve = NULL;
	incomplete[2].unpreserve = NULL;
	incomplete[3].retrieve = NULL;
	incomplete[4].finish = NULL;

	for (i = 0; i < ARRAY_SIZE(incomplete); i++) {
		bad.ops = &incomplete[i];
		expect(liveupdate_register_file_handler(&bad), -EINVAL);
	}
}

static void handlers_have_names_of_their_own(void)
{
	expect(liveupdate_register_file_handler(&handler), 0);
	expect(liveupdate_register_file_handler(&same_name), -EEXIST);
	expect(liveupdate_register_file_handler(&handler), -EEXIST);
	expect(liveupdate_register_file_handler(&other), 0);

	liveupdate_unregister_file_handler(&handler);
	expect(liveupdate_register_file_handler(&same_name), 0);
	expect(liveupdate_register_file_handler(&handler), -EEXIST);
	liveupdate_unregister_file_handler(&same_name);
	expect(liveupdate_register_file_handler(&handler), 0);
}

static void names_are_names(void)
{
	struct liveupdate_file_handler bad = { .ops = &ops };

	expect(liveupdate_register_file_handler(&bad), -EINVAL);
	memset((char *)bad.compatible, 'x', sizeof(bad.compatible));
	expect(liveupdate_register_file_handler(&bad), -EINVAL);
}

static void flbs_are_linked_once(void)
{
	void *object;

	expect(liveupdate_register_flb(&handler, &flb), 0);
	expect(liveupdate_register_flb(&handler, &flb), -EEXIST);
	expect(liveupdate_register_flb(&other, &flb), 0);
	expect(liveupdate_register_flb(&handler, &flb_same_name), -EEXIST);

	expect(liveupdate_flb_get_outgoing(&flb, &object), -ENOENT);

	liveupdate_unregister_flb(&handler, &flb);
	/* The other handler still depends on it. */
	expect(liveupdate_register_flb(&handler, &flb_same_name), -EEXIST);
	liveupdate_unregister_flb(&other, &flb);
	expect(liveupdate_register_flb(&handler, &flb_same_name), 0);
	liveupdate_unregister_flb(&handler, &flb_same_name);

	/* Unregistering a handler takes its dependencies along. */
	expect(liveupdate_register_flb(&other, &flb), 0);
	liveupdate_unregister_file_handler(&other);
	expect(liveupdate_register_file_handler(&other), 0);
	expect(liveupdate_register_flb(&handler, &flb_same_name), 0);
	liveupdate_unregister_flb(&handler, &flb_same_name);
}

static void flbs_need_their_callbacks(void)
{
	static struct liveupdate_flb_ops incomplete[4];
	static struct liveupdate_file_handler nobody = {
		.ops = &ops, .compatible = "luo-test-capi-nobody",
	};
	static struct liveupdate_flb bad = { .compatible = "luo-test-capi-bad" };
	int i;

	for (i = 0; i < ARRAY_SIZE(incomplete); i++)
		incomplete[i] = flb_ops;
	incomplete[0].preserve = NULL;
	incomplete[1].unpreserve = NULL;
	incomplete[2].retrieve = NULL;
	incomplete[3].finish = NULL;

	for (i = 0; i < ARRAY_SIZE(incomplete); i++) {
		bad.ops = &incomplete[i];
		expect(liveupdate_register_flb(&handler, &bad), -EINVAL);
	}
	expect(liveupdate_register_flb(&nobody, &flb), -EINVAL);
	/* Said in the log, and nothing else. */
	liveupdate_unregister_flb(&handler, &flb);
	liveupdate_unregister_file_handler(&nobody);
}

/* As many FLBs as are handed over, and one more. */
static void there_is_an_end_to_flbs(void)
{
	struct liveupdate_flb *many;
	int i, err, count = 0;

	many = kcalloc(64, sizeof(*many), GFP_KERNEL);
	if (!many) {
		failures++;
		return;
	}
	for (i = 0; i < 64; i++) {
		many[i].ops = &flb_ops;
		snprintf((char *)many[i].compatible, sizeof(many[i].compatible),
			 "luo-test-capi-flb-%d", i);
		err = liveupdate_register_flb(&handler, &many[i]);
		if (err)
			break;
		count++;
	}
	expect(err, -ENOSPC);
	expect(count >= 8, 1);

	/* There is place again, for each that goes. */
	for (i = 0; i < count; i++)
		liveupdate_unregister_flb(&handler, &many[i]);
	for (i = 0; i < count; i++)
		expect(liveupdate_register_flb(&handler, &many[i]), 0);
	for (i = count - 1; i >= 0; i--)
		liveupdate_unregister_flb(&handler, &many[i]);
	kfree(many);
}

static int __init capi_init(void)
{
	if (!liveupdate_enabled()) {
		expect(liveupdate_register_file_handler(&handler), -EOPNOTSUPP);
		expect(liveupdate_register_flb(&handler, &flb), -EOPNOTSUPP);
		return failures ? -EINVAL : 0;
	}

	handlers_need_their_callbacks();
	handlers_have_names_of_their_own();
	flbs_are_linked_once();
	there_is_an_end_to_flbs();
	if (strict) {
		names_are_names();
		flbs_need_their_callbacks();
	}

	liveupdate_unregister_file_handler(&handler);
	liveupdate_unregister_file_handler(&other);
	return failures ? -EINVAL : 0;
}
module_init(capi_init);

static void __exit capi_exit(void)
{
}
module_exit(capi_exit);

MODULE_AUTHOR("The LUO developers");
MODULE_DESCRIPTION("Live update: checks of the interface for C drivers");
MODULE_LICENSE("GPL");
