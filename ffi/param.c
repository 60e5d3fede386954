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

/* In rust/kernel/liveupdate.rs. */
void liveupdate_set_luo_v5(bool luo_v5);
bool liveupdate_writes_luo_v5(void);

#ifdef CONFIG_LIVEUPDATE_RUST
/* In ffi/exports.rs. */
int luo_set_luo_v5(bool luo_v5);
#define ABI_MODE	0644
#else
static int luo_set_luo_v5(bool luo_v5)
{
	liveupdate_set_luo_v5(luo_v5);
	return 0;
}

#define ABI_MODE	0444
#endif

static int abi_set(const char *value, const struct kernel_param *kp)
{
	if (sysfs_streq(value, "luo-v5"))
		return luo_set_luo_v5(true);
	if (sysfs_streq(value, "fdt"))
		return luo_set_luo_v5(false);
	return -EINVAL;
}

static int abi_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%s\n", liveupdate_writes_luo_v5() ? "luo-v5" : "fdt");
}

static const struct kernel_param_ops abi_ops = {
	.set = abi_set,
	.get = abi_get,
};

module_param_cb(abi, &abi_ops, NULL, ABI_MODE);
