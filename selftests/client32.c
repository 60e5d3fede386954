// SPDX-License-Identifier: GPL-2.0

/*
 * A client of 32 bits: makes every request there is, with the header that the
 * kernel exports. Says "ok", or what went wrong and where.
 *
 *     client32 before NAME   leaves a session, and stays until it is killed
 *     client32 after NAME    takes it over, and finishes it
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/liveupdate.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define TOKEN 0xfedcba9876543210ULL

static void fail(int line, const char *what)
{
	printf("line %d: %s, errno %d\n", line, what, errno);
	exit(1);
}

#define expect(condition)				\
	do {						\
		if (!(condition))			\
			fail(__LINE__, #condition);	\
	} while (0)

static void expect_name(int session, const char *name)
{
	struct liveupdate_session_get_name get = { .size = sizeof(get) };

	expect(!ioctl(session, LIVEUPDATE_SESSION_GET_NAME, &get));
	expect(!strcmp((char *)get.name, name));
}

static void before(int device, const char *name)
{
	struct liveupdate_ioctl_create_session create = {
		.size = sizeof(create), .fd = -1,
	};
	struct liveupdate_session_preserve_fd preserve = {
		.size = sizeof(preserve), .token = TOKEN,
	};
	int memory = memfd_create("of 32 bits", 0);

	expect(memory >= 0);
	expect(write(memory, "content", 7) == 7);
	strlcpy((char *)create.name, name, sizeof(create.name));
	expect(!ioctl(device, LIVEUPDATE_IOCTL_CREATE_SESSION, &create));
	expect(create.fd >= 0);
	expect(ioctl(device, LIVEUPDATE_IOCTL_CREATE_SESSION, &create) < 0);
	expect(errno == EEXIST);
	expect_name(create.fd, name);

	preserve.fd = memory;
	expect(!ioctl(create.fd, LIVEUPDATE_SESSION_PRESERVE_FD, &preserve));
	expect(ioctl(create.fd, LIVEUPDATE_SESSION_PRESERVE_FD, &preserve) < 0);
	expect(errno == EEXIST);
	preserve.token++;
	expect(ioctl(create.fd, LIVEUPDATE_SESSION_PRESERVE_FD, &preserve) < 0);
	expect(errno == EBUSY);
}

static void after(int device, const char *name)
{
	struct liveupdate_ioctl_retrieve_session take = {
		.size = sizeof(take), .fd = -1,
	};
	struct liveupdate_session_retrieve_fd retrieve = {
		.size = sizeof(retrieve), .fd = -1, .token = TOKEN & 0xffffffff,
	};
	struct liveupdate_session_finish finish = { .size = sizeof(finish) };
	char content[8] = "";

	strlcpy((char *)take.name, name, sizeof(take.name));
	expect(!ioctl(device, LIVEUPDATE_IOCTL_RETRIEVE_SESSION, &take));
	expect(take.fd >= 0);
	expect_name(take.fd, name);

	/* Half of the token is another token. */
	expect(ioctl(take.fd, LIVEUPDATE_SESSION_RETRIEVE_FD, &retrieve) < 0);
	expect(errno == ENOENT);
	retrieve.token = TOKEN;
	expect(!ioctl(take.fd, LIVEUPDATE_SESSION_RETRIEVE_FD, &retrieve));
	expect(retrieve.fd >= 0);
	expect(lseek(retrieve.fd, 0, SEEK_SET) == 0);
	expect(read(retrieve.fd, content, 7) == 7);
	expect(!strcmp(content, "content"));

	finish.reserved = 1;
	expect(ioctl(take.fd, LIVEUPDATE_SESSION_FINISH, &finish) < 0);
	expect(errno == EINVAL);
	finish.reserved = 0;
	expect(!ioctl(take.fd, LIVEUPDATE_SESSION_FINISH, &finish));
	expect(!close(take.fd));
	expect(ioctl(device, LIVEUPDATE_IOCTL_RETRIEVE_SESSION, &take) < 0);
	expect(errno == ENOENT);
}

int main(int argc, char **argv)
{
	int device;

	expect(sizeof(void *) == 4);
	expect(argc == 3);
	device = open("/dev/liveupdate", O_RDWR);
	expect(device >= 0);
	if (!strcmp(argv[1], "after")) {
		after(device, argv[2]);
		printf("ok\n");
		return 0;
	}
	before(device, argv[2]);
	/* Others want it, too. */
	close(device);
	printf("ok\n");
	for (;;)
		sleep(1000);
}
