/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Client library of the Live Update Orchestrator: sessions whose files outlive the kernel.
 *
 * Sessions and files are descriptors. Functions return a negative errno if they fail;
 * liveupdate_error() has the reason in words then.
 *
 * The last close of an incoming session may destroy what was not retrieved: close one only after
 * liveupdate_finish(), or give it to liveupdate_store().
 *
 * This file is generated from tools/libliveupdate/src/lib.rs.
 */

#ifndef LIVEUPDATE_H
#define LIVEUPDATE_H

#include <stddef.h>
#include <stdint.h>

/**
 * The session waits for the reboot.
 */
#define LIVEUPDATE_OUTGOING 1

/**
 * The previous kernel handed the session over.
 */
#define LIVEUPDATE_INCOMING 2

/**
 * There is no live update in this kernel, or it does not say so.
 */
#define LIVEUPDATE_ABSENT 0

/**
 * Live update is off.
 */
#define LIVEUPDATE_OFF 1

/**
 * The device is there, and the kernel tells no more.
 */
#define LIVEUPDATE_DEVICE_ONLY 2

/**
 * Nothing is under way.
 */
#define LIVEUPDATE_NORMAL 3

/**
 * There is something for the next kernel.
 */
#define LIVEUPDATE_PREPARED 4

/**
 * A live update led to this boot, and not all incoming sessions are finished.
 */
#define LIVEUPDATE_UPDATED 5

/**
 * To be known.
 */
#define LIVEUPDATE_NOTE 0

/**
 * Something may be lost, or cannot be known.
 */
#define LIVEUPDATE_WARNING 1

/**
 * Something would be lost, or the update would fail.
 */
#define LIVEUPDATE_ERROR 2

/**
 * Is told a finding: its level, a short name and a text, which are valid during the call.
 */
typedef void (*liveupdate_finding_fn)(void *argument, int level, const char *code, const char *text);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Why the last call in this thread failed, in one line. Valid until the next call in this thread.
 */
const char *liveupdate_error(void);

/**
 * Makes an outgoing session; `name` has 1 to 63 bytes.
 *
 * Returns its descriptor, close-on-exec. The session lasts as long as it, or a copy of it, is open;
 * /dev/liveupdate is open during the call only.
 */
int liveupdate_create(const char *name);

/**
 * Takes over a session that the previous kernel preserved.
 *
 * Returns its descriptor, close-on-exec. -ENOENT: there is none of this name, or it is finished;
 * -EINVAL: somebody has it; -EUCLEAN: it may have been corrupted on the way.
 */
int liveupdate_take(const char *name);

/**
 * On which side of the reboot a session is: LIVEUPDATE_OUTGOING or LIVEUPDATE_INCOMING. -ENOTTY: the
 * descriptor is not a session. Asking has no effect on it.
 */
int liveupdate_direction(int session);

/**
 * Writes the name of a session to `name`, which has 64 bytes, and ends it by a NUL.
 */
int liveupdate_name(int session, char *name);

/**
 * Preserves an open file in an outgoing session. The kernel keeps its own reference to it.
 *
 * -ENOENT: no file handler can preserve such a file; -EBUSY: it is preserved already, or a kexec is
 * under way; -EEXIST: the session has a file under this token.
 */
int liveupdate_preserve(int session, int fd, uint64_t token);

/**
 * Returns the file that was preserved under a token, close-on-exec.
 *
 * -ENOENT: the session has no such token, or the file handler is not there; -EUCLEAN: it may have
 * been corrupted on the way; -ENOMEM, -ENFILE, -EMFILE: try again.
 */
int liveupdate_retrieve(int session, uint64_t token);

/**
 * Makes an open file, the target, the one that was preserved under a token, and returns another
 * descriptor of it, close-on-exec. It must be an empty regular file of a tmpfs, or a memfd, open for
 * reading and writing. It gets content and size, and nothing is copied.
 *
 * As liveupdate_retrieve(), and: -EOPNOTSUPP, -E2BIG: this type of file, or this kernel, cannot do
 * that; -EINVAL, -EBADF, -ENOTEMPTY, -EPERM, -ENOSPC: the target does not do; -EEXIST: it has been
 * retrieved already. The file can be retrieved otherwise then.
 */
int liveupdate_retrieve_into(int session,
                             uint64_t token,
                             int target);

/**
 * Ends an incoming session. What was not retrieved is destroyed.
 *
 * -EBUSY: a file cannot be finished yet; nothing has changed, try again.
 */
int liveupdate_finish(int session);

/**
 * Puts a descriptor into the service manager's store, which returns it to the next start of the
 * service. -EOPNOTSUPP: there is none (FileDescriptorStoreMax=, systemd 254 or later). The caller
 * still owns `fd`.
 */
int liveupdate_store(int fd, const char *name);

/**
 * The state of live updates on this machine. Does not open the device.
 */
int liveupdate_state(void);

/**
 * Loads the next kernel; `initrd` is -1 if there is none.
 */
int liveupdate_kexec_load(int kernel, int initrd, const char *cmdline);

/**
 * Unloads the next kernel.
 */
int liveupdate_kexec_unload(void);

/**
 * Starts the loaded kernel at once. Returns only if the kernel refuses; nothing has changed then.
 */
int liveupdate_kexec(void);

/**
 * Checks whether a kernel image can take over what is preserved now. `initrd` may be NULL, `finding`
 * too. Returns the level of what matters most.
 */
int liveupdate_check(const char *kernel,
                     const char *initrd,
                     const char *cmdline,
                     liveupdate_finding_fn finding,
                     void *argument);

/**
 * Sends bytes and descriptors over a UNIX socket. Returns how many bytes were sent.
 */
int liveupdate_send(int socket, const void *bytes, size_t len, const int *fds, size_t count);

/**
 * Receives bytes and one descriptor from a UNIX socket; `*fd` is -1 if there is none. Further ones are
 * closed, so protocols with one a message are meant. Returns how many bytes were received.
 */
int liveupdate_receive(int socket,
                       void *bytes,
                       size_t len,
                       int *fd);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* LIVEUPDATE_H */
