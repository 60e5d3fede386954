// SPDX-License-Identifier: GPL-2.0

/*
 * Keeps the machine running for a while when it reboots, after all sessions
 * have been written down: so that tests can see what is possible then.
 *
 * Then it takes the lock of a device, as device_shutdown() does with the lock
 * of each. Here as with some of those, a read() copies under that lock.
 */

#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/reboot.h>
#include <linux/uaccess.h>

static unsigned int milliseconds = 1000;
module_param(milliseconds, uint, 0444);
MODULE_PARM_DESC(milliseconds, "How long");

static DEFINE_MUTEX(device_mutex);

static ssize_t read_locked(struct file *file, char __user *to, size_t len,
			   loff_t *pos)
{
	static const u8 text[] = { [0 ... 63] = 0x5a };
	size_t done;

	mutex_lock(&device_mutex);
	for (done = 0; done < len; done += sizeof(text)) {
		if (copy_to_user(to + done, text, min(len - done, sizeof(text)))) {
			mutex_unlock(&device_mutex);
			return -EFAULT;
		}
	}
	mutex_unlock(&device_mutex);
	return len;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.read = read_locked,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "luo-test-linger",
	.fops = &operations,
};

static int linger(struct notifier_block *block, unsigned long event, void *data)
{
	msleep(milliseconds);
	mutex_lock(&device_mutex);
	mutex_unlock(&device_mutex);
	return NOTIFY_DONE;
}

static struct notifier_block lingering = { .notifier_call = linger };

static int __init luo_test_linger_init(void)
{
	int err = misc_register(&device);

	if (err)
		return err;
	err = register_reboot_notifier(&lingering);
	if (err)
		misc_deregister(&device);
	return err;
}
module_init(luo_test_linger_init);

static void __exit luo_test_linger_exit(void)
{
	unregister_reboot_notifier(&lingering);
	misc_deregister(&device);
}
module_exit(luo_test_linger_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Live update: a reboot that takes its time");
