// SPDX-License-Identifier: GPL-2.0

/*
 * The parameter liveupdate.abi=, on the command line and in
 * /sys/module/liveupdate/parameters/. Parameters of Rust modules have no
 * callbacks, and this one belongs to no module: the Rust memfd handler obeys
 * it under the C core, too, where it cannot be changed after boot.
 */

#include <linux/moduleparam.h>
#include <linux/string.h>
#include <linux/sysfs.h>

#undef MODULE_PARAM_PREFIX
#define MODULE_PARAM_PREFIX "liveupdate."

/* The order is that of Choice in luo_core/format.rs. */
static const char * const names[] = { "fdt", "luo-v5", "luo-v5-lossy", "auto" };

#ifdef CONFIG_LIVEUPDATE_RUST
/* In ffi/exports.rs. */
int luo_choose_abi(unsigned int choice);
unsigned int luo_chosen_abi(void);
#define ABI_MODE	0644
#else
/* In rust/kernel/liveupdate.rs. */
void liveupdate_set_abi(bool luo_v5, bool lossy);

static unsigned int chosen;

static int luo_choose_abi(unsigned int choice)
{
	/* It does not know what there is to be chosen from. */
	if (!strcmp(names[choice], "auto"))
		return -EOPNOTSUPP;
	chosen = choice;
	liveupdate_set_abi(choice != 0, choice == 2);
	return 0;
}

static unsigned int luo_chosen_abi(void)
{
	return chosen;
}

#define ABI_MODE	0444
#endif

static int abi_set(const char *value, const struct kernel_param *kp)
{
	int choice = sysfs_match_string(names, value);

	return choice < 0 ? choice : luo_choose_abi(choice);
}

static int abi_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%s\n", names[luo_chosen_abi()]);
}

static const struct kernel_param_ops abi_ops = {
	.set = abi_set,
	.get = abi_get,
};

module_param_cb(abi, &abi_ops, NULL, ABI_MODE);
