/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */

/*
 * User space interface of /dev/liveupdate and of the session descriptors.
 *
 * Names, numbers and layouts are those of the Linux header <linux/liveupdate.h>:
 * a client compiles against either. lib.rs beside this file is the same in Rust.
 */

#ifndef _UAPI_LIVEUPDATE_H
#define _UAPI_LIVEUPDATE_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * DOC: Requests
 *
 * Each request is an ioctl(2) with a pointer to one of the structures below.
 * The caller puts the size of the structure that it was compiled with into the
 * first field. A kernel with a larger structure takes what is missing as zero;
 * a kernel with a smaller one accepts the request if all that it does not know
 * is zero. The answer never extends beyond the caller's size. A request that
 * fails has changed nothing.
 *
 * What any request may return:
 *
 * ``EINVAL``
 *   The number is none of this descriptor, the size is too small, a reserved
 *   field is not zero, or a session of this direction knows no such request.
 * ``ENOTTY``
 *   The number is known but the other bits of the command are wrong.
 * ``E2BIG``
 *   The structure has data that this kernel does not understand.
 * ``EFAULT``
 *   The structure cannot be read, or the answer not be written.
 * ``EBUSY``
 *   The machine is on its way into the next kernel, and the request would
 *   change what goes there.
 * ``ENOMEM``
 *   There is not enough memory.
 */

/* Type of all requests, registered in ioctl-number.rst */
#define LIVEUPDATE_IOCTL_TYPE		0xBA

/* Bytes of a session's name with the NUL at its end */
#define LIVEUPDATE_SESSION_NAME_LENGTH	64

/* Numbers of the requests to /dev/liveupdate */
enum {
	LIVEUPDATE_CMD_BASE = 0x00,
	LIVEUPDATE_CMD_CREATE_SESSION = LIVEUPDATE_CMD_BASE,
	LIVEUPDATE_CMD_RETRIEVE_SESSION = 0x01,
};

/* Numbers of the requests to a session */
enum {
	LIVEUPDATE_CMD_SESSION_BASE = 0x40,
	LIVEUPDATE_CMD_SESSION_PRESERVE_FD = LIVEUPDATE_CMD_SESSION_BASE,
	LIVEUPDATE_CMD_SESSION_RETRIEVE_FD = 0x41,
	LIVEUPDATE_CMD_SESSION_FINISH = 0x42,
	LIVEUPDATE_CMD_SESSION_GET_NAME = 0x43,
};

/**
 * struct liveupdate_ioctl_create_session - make a new outgoing session
 * @size: in: size of this structure
 * @fd:   out: the session's descriptor, close-on-exec
 * @name: in: the session's name, not empty, with a NUL at its end
 *
 * The session lives until its last descriptor is closed; whether /dev/liveupdate
 * stays open makes no difference. What is in it when the machine reboots by
 * kexec is there in the next kernel.
 *
 * Errors: ``EINVAL`` (a name that is empty or has no end), ``EEXIST`` (an outgoing
 * session has this name), ``EMFILE``, ``ENFILE``.
 */
struct liveupdate_ioctl_create_session {
	__u32		size;
	__s32		fd;
	__u8		name[LIVEUPDATE_SESSION_NAME_LENGTH];
};

#define LIVEUPDATE_IOCTL_CREATE_SESSION \
	_IO(LIVEUPDATE_IOCTL_TYPE, LIVEUPDATE_CMD_CREATE_SESSION)

/**
 * struct liveupdate_ioctl_retrieve_session - take over a session after the update
 * @size: in: size of this structure
 * @fd:   out: the session's descriptor, close-on-exec
 * @name: in: the name under which the previous kernel had the session
 *
 * The holder of the descriptor owns the session. Closing it without
 * LIVEUPDATE_SESSION_FINISH finishes it.
 *
 * Errors: ``ENOENT`` (no such session was handed over), ``EINVAL`` (taken already),
 * ``EMFILE``, ``ENFILE``.
 */
struct liveupdate_ioctl_retrieve_session {
	__u32		size;
	__s32		fd;
	__u8		name[LIVEUPDATE_SESSION_NAME_LENGTH];
};

#define LIVEUPDATE_IOCTL_RETRIEVE_SESSION \
	_IO(LIVEUPDATE_IOCTL_TYPE, LIVEUPDATE_CMD_RETRIEVE_SESSION)

/**
 * struct liveupdate_session_preserve_fd - put an open file into a session
 * @size:  in: size of this structure
 * @fd:    in: the file
 * @token: in: any number that no other file of this session has
 *
 * The kernel takes its own reference to the file. It remembers the token, not
 * the descriptor: the caller may close it.
 *
 * Errors: ``EBADF``, ``ENOENT`` (no handler for such a file), ``EEXIST`` (the token
 * is taken), ``EBUSY`` (the file is preserved already, here or elsewhere), and
 * what the handler reports.
 */
struct liveupdate_session_preserve_fd {
	__u32		size;
	__s32		fd;
	__aligned_u64	token;
};

#define LIVEUPDATE_SESSION_PRESERVE_FD \
	_IO(LIVEUPDATE_IOCTL_TYPE, LIVEUPDATE_CMD_SESSION_PRESERVE_FD)

/**
 * struct liveupdate_session_retrieve_fd - get a file out of a retrieved session
 * @size:  in: size of this structure
 * @fd:    out: a descriptor of the file, close-on-exec
 * @token: in: the file's token
 * @flags: in: zero, or %LIVEUPDATE_RETRIEVE_INTO
 * @target: in: zero, or with that flag a descriptor
 *
 * Any order will do. Asking again gives another descriptor of the same open file.
 *
 * With LIVEUPDATE_RETRIEVE_INTO the file is not a new one, but the target: an empty
 * regular file of a tmpfs, or a memfd, open for reading and writing. It gets content
 * and size; name, owner, mode, open flags and position stay as they are.
 *
 * Errors: ``ENOENT`` (no such token, or no handler for the file), ``EMFILE``,
 * ``ENFILE``, and what the handler reports. With a target ``EOPNOTSUPP`` (not for this
 * type of file), ``EBADF``, ``EINVAL`` (no file of shared memory), ``EEXIST`` (retrieved
 * already), ``ENOTEMPTY``, ``EPERM`` (it must not change, or lacks a seal of the file),
 * ``EBUSY`` (it is being preserved or
 * written to), ``ENOSPC``, ``EDQUOT``, ``EFBIG``. The file can be
 * retrieved otherwise then.
 */
struct liveupdate_session_retrieve_fd {
	__u32		size;
	__s32		fd;
	__aligned_u64	token;
	__u32		flags;
	__s32		target;
};

#define LIVEUPDATE_RETRIEVE_INTO	1

#define LIVEUPDATE_SESSION_RETRIEVE_FD \
	_IO(LIVEUPDATE_IOCTL_TYPE, LIVEUPDATE_CMD_SESSION_RETRIEVE_FD)

/**
 * struct liveupdate_session_finish - the update of this session is over
 * @size:     in: size of this structure
 * @reserved: in: zero
 *
 * The kernel gives up its hold on the session's files: those retrieved belong to
 * their users alone, the others are freed.
 *
 * Errors: ``EBUSY`` (a handler cannot let go yet; nothing was done, try again).
 */
struct liveupdate_session_finish {
	__u32		size;
	__u32		reserved;
};

#define LIVEUPDATE_SESSION_FINISH \
	_IO(LIVEUPDATE_IOCTL_TYPE, LIVEUPDATE_CMD_SESSION_FINISH)

/**
 * struct liveupdate_session_get_name - ask a session for its name
 * @size:     in: size of this structure
 * @reserved: in: zero
 * @name:     out: the name with a NUL at its end
 */
struct liveupdate_session_get_name {
	__u32		size;
	__u32		reserved;
	__u8		name[LIVEUPDATE_SESSION_NAME_LENGTH];
};

#define LIVEUPDATE_SESSION_GET_NAME \
	_IO(LIVEUPDATE_IOCTL_TYPE, LIVEUPDATE_CMD_SESSION_GET_NAME)

#endif /* _UAPI_LIVEUPDATE_H */
