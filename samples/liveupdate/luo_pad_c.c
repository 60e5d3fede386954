// SPDX-License-Identifier: GPL-2.0

/*
 * A driver whose files survive a live update, in C.
 *
 * /dev/luo-pad makes pads (LUO_PAD_CREATE). A pad is a file with a text: a
 * write replaces it, a read gives it. Each pad has a number that no other pad
 * ever has, before a live update or after it.
 *
 * So there are two things to hand over, and they show the two parts of the
 * driver interface: a pad, by a file handler, and the last number, which all
 * pads share, by an FLB.
 *
 * luo_pad_rust.rs is the same driver in Rust. They hand over the same,
 * described in luo_pad.h, so that either may follow the other.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/kexec_handover.h>
#include <linux/liveupdate.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/uio.h>

#include "luo_pad.h"

static_assert(sizeof(struct luo_pad_saved) == SZ_4K);

struct pad {
	u64 number;
	/*
	 * Protects the rest. The freeze takes it, so it is never held while
	 * user memory is accessed: that may fault, and a fault may wait for
	 * whatever it likes.
	 */
	struct mutex lock;
	bool frozen;			/* saved for the last time */
	size_t length;
	u8 text[LUO_PAD_MAX];
};

/* The last number given to a pad. Taken inside all locks of LUO. */
static DEFINE_MUTEX(numbers_lock);
static u64 last_number;

static struct liveupdate_flb numbers_flb;

static void raise_last_number(u64 least)
{
	mutex_lock(&numbers_lock);
	last_number = max(last_number, least);
	mutex_unlock(&numbers_lock);
}

static u64 next_number(void)
{
	struct luo_pad_numbers *saved;
	void *object;
	u64 number;

	mutex_lock(&numbers_lock);
	number = ++last_number;
	mutex_unlock(&numbers_lock);

	/* If some pad is preserved, the next kernel is to know. */
	if (!liveupdate_flb_get_outgoing(&numbers_flb, &object)) {
		saved = object;
		mutex_lock(&numbers_lock);
		saved->last = max(saved->last, number);
		mutex_unlock(&numbers_lock);
		liveupdate_flb_put_outgoing(&numbers_flb);
	}
	return number;
}

static ssize_t pad_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct pad *pad = iocb->ki_filp->private_data;
	u8 *text __free(kfree) = NULL;
	size_t length, copied = 0;

	if (iocb->ki_pos < 0)
		return -EINVAL;
	text = kmalloc(LUO_PAD_MAX, GFP_KERNEL);
	if (!text)
		return -ENOMEM;

	mutex_lock(&pad->lock);
	length = pad->length;
	memcpy(text, pad->text, length);
	mutex_unlock(&pad->lock);

	if (iocb->ki_pos < length)
		copied = copy_to_iter(text + iocb->ki_pos,
				      length - iocb->ki_pos, to);
	iocb->ki_pos += copied;
	return copied;
}

static ssize_t pad_write_iter(struct kiocb *iocb, struct iov_iter *from)
{
	struct pad *pad = iocb->ki_filp->private_data;
	size_t length = iov_iter_count(from);
	u8 *text __free(kfree) = NULL;

	if (length > LUO_PAD_MAX)
		return -EFBIG;
	text = kmalloc(LUO_PAD_MAX, GFP_KERNEL);
	if (!text)
		return -ENOMEM;
	if (!copy_from_iter_full(text, length, from))
		return -EFAULT;

	guard(mutex)(&pad->lock);
	/* The next kernel would not have it. */
	if (pad->frozen)
		return -EBUSY;
	memcpy(pad->text, text, length);
	pad->length = length;
	/* What comes next is a read of it. */
	iocb->ki_pos = 0;
	return length;
}

static long pad_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct pad *pad = file->private_data;

	if (cmd != LUO_PAD_GET_NUMBER)
		return -ENOTTY;
	return put_user(pad->number, (u64 __user *)arg);
}

static int pad_release(struct inode *inode, struct file *file)
{
	kfree(file->private_data);
	return 0;
}

static const struct file_operations pad_fops = {
	.owner = THIS_MODULE,
	.read_iter = pad_read_iter,
	.write_iter = pad_write_iter,
	.unlocked_ioctl = pad_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.release = pad_release,
};

/* Makes the file of a pad. */
static struct file *pad_file(u64 number, const u8 *text, size_t length)
{
	struct file *file;
	struct pad *pad;

	pad = kzalloc_obj(*pad);
	if (!pad)
		return ERR_PTR(-ENOMEM);
	mutex_init(&pad->lock);
	pad->number = number;
	pad->length = length;
	memcpy(pad->text, text, length);

	file = anon_inode_getfile_fmode("[luo_pad]", &pad_fops, pad, O_RDWR,
					FMODE_PREAD | FMODE_PWRITE);
	if (IS_ERR(file))
		kfree(pad);
	return file;
}

static void pad_save(struct file *file, struct luo_pad_saved *saved, bool freeze)
{
	struct pad *pad = file->private_data;

	guard(mutex)(&pad->lock);
	pad->frozen = freeze;
	saved->number = pad->number;
	saved->length = pad->length;
	memcpy(saved->text, pad->text, pad->length);
}

static bool pads_can_preserve(struct liveupdate_file_handler *handler,
			      struct file *file)
{
	return file->f_op == &pad_fops;
}

static int pads_preserve(struct liveupdate_file_op_args *args)
{
	struct luo_pad_saved *saved = kho_alloc_preserve(sizeof(*saved));

	if (IS_ERR(saved))
		return PTR_ERR(saved);
	pad_save(args->file, saved, false);
	args->private_data = saved;
	args->serialized_data = virt_to_phys(saved);
	return 0;
}

/* The pad was in use until now; what counts is its last text. */
static int pads_freeze(struct liveupdate_file_op_args *args)
{
	pad_save(args->file, args->private_data, true);
	return 0;
}

static void pads_unfreeze(struct liveupdate_file_op_args *args)
{
	struct pad *pad = args->file->private_data;

	guard(mutex)(&pad->lock);
	pad->frozen = false;
}

static void pads_unpreserve(struct liveupdate_file_op_args *args)
{
	kho_unpreserve_free(args->private_data);
}

static int pads_retrieve(struct liveupdate_file_op_args *args)
{
	struct luo_pad_saved *saved;
	struct file *file;

	/* Whatever the previous kernel left, it is not to be trusted. */
	if (!args->serialized_data)
		return -EINVAL;
	saved = phys_to_virt(args->serialized_data);
	if (saved->length > LUO_PAD_MAX)
		return -EINVAL;

	file = pad_file(saved->number, saved->text, saved->length);
	if (IS_ERR(file))
		return PTR_ERR(file);
	raise_last_number(saved->number);
	args->file = file;
	kho_restore_free(saved);
	return 0;
}

static void pads_finish(struct liveupdate_file_op_args *args)
{
	/* If the pad was not made, what was handed over is still there. */
	if (args->retrieve_status <= 0 && args->serialized_data)
		kho_restore_free(phys_to_virt(args->serialized_data));
}

static const struct liveupdate_file_ops pads_ops = {
	.can_preserve = pads_can_preserve,
	.preserve = pads_preserve,
	.freeze = pads_freeze,
	.unfreeze = pads_unfreeze,
	.unpreserve = pads_unpreserve,
	.retrieve = pads_retrieve,
	.finish = pads_finish,
	.owner = THIS_MODULE,
};

static struct liveupdate_file_handler pads = {
	.ops = &pads_ops,
	.compatible = LUO_PAD_COMPATIBLE,
};

static int numbers_preserve(struct liveupdate_flb_op_args *args)
{
	struct luo_pad_numbers *saved = kho_alloc_preserve(PAGE_SIZE);

	if (IS_ERR(saved))
		return PTR_ERR(saved);
	mutex_lock(&numbers_lock);
	saved->last = last_number;
	mutex_unlock(&numbers_lock);
	args->obj = saved;
	args->data = virt_to_phys(saved);
	return 0;
}

static void numbers_unpreserve(struct liveupdate_flb_op_args *args)
{
	kho_unpreserve_free(args->obj);
}

static int numbers_retrieve(struct liveupdate_flb_op_args *args)
{
	if (!args->data)
		return -EINVAL;
	args->obj = phys_to_virt(args->data);
	return 0;
}

static void numbers_finish(struct liveupdate_flb_op_args *args)
{
	kho_restore_free(args->obj);
}

static const struct liveupdate_flb_ops numbers_ops = {
	.preserve = numbers_preserve,
	.unpreserve = numbers_unpreserve,
	.retrieve = numbers_retrieve,
	.finish = numbers_finish,
	.owner = THIS_MODULE,
};

static struct liveupdate_flb numbers_flb = {
	.ops = &numbers_ops,
	.compatible = LUO_PAD_NUMBERS_COMPATIBLE,
};

static long device_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct file *pad;
	int fd;

	if (cmd != LUO_PAD_CREATE)
		return -ENOTTY;

	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;
	pad = pad_file(next_number(), NULL, 0);
	if (IS_ERR(pad)) {
		put_unused_fd(fd);
		return PTR_ERR(pad);
	}
	fd_install(fd, pad);
	return fd;
}

static const struct file_operations device_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = device_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = LUO_PAD_DEVICE,
	.fops = &device_fops,
};

static int __init pad_init(void)
{
	void *object;
	int err;

	err = liveupdate_register_file_handler(&pads);
	if (err)
		return err;
	err = liveupdate_register_flb(&pads, &numbers_flb);
	if (err)
		goto unregister;

	/* The numbers go on where the previous kernel stopped. */
	err = liveupdate_flb_get_incoming(&numbers_flb, &object);
	if (!err) {
		raise_last_number(((struct luo_pad_numbers *)object)->last);
		liveupdate_flb_put_incoming(&numbers_flb);
	} else if (err != -ENOENT && err != -ENODATA) {
		pr_warn("numbers of the previous kernel are lost: %d\n", err);
	}

	/* Pads can be made once their numbers are right. */
	err = misc_register(&device);
	if (err)
		goto unregister;
	return 0;

unregister:
	/* The FLB goes with it. */
	liveupdate_unregister_file_handler(&pads);
	return err;
}
module_init(pad_init);

static void __exit pad_exit(void)
{
	misc_deregister(&device);
	liveupdate_unregister_file_handler(&pads);
}
module_exit(pad_exit);

MODULE_AUTHOR("The LUO developers");
MODULE_DESCRIPTION("Live update sample: a driver in C whose files survive");
MODULE_LICENSE("GPL");
