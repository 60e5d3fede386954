/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Carries a text over a live update.
 *
 *	hold preserve SESSION TEXT	in the old kernel: holds the session until it is killed
 *	hold retrieve SESSION		in the new kernel: prints the text
 *
 * cc hold.c $(pkg-config --cflags --libs liveupdate) -o hold
 */

#define _GNU_SOURCE
#include <errno.h>
#include <liveupdate.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define TOKEN 1

static int fail(const char *what)
{
	fprintf(stderr, "hold: %s: %s\n", what, liveupdate_error());
	return 1;
}

static int preserve(const char *name, const char *text)
{
	int session = liveupdate_create(name);
	int memory;

	if (session < 0)
		return fail("create");
	memory = memfd_create("text", MFD_CLOEXEC);
	if (memory < 0 || write(memory, text, strlen(text)) != (ssize_t)strlen(text)) {
		perror("hold: memfd");
		return 1;
	}
	if (liveupdate_preserve(session, memory, TOKEN))
		return fail("preserve");
	if (liveupdate_direction(session) != LIVEUPDATE_OUTGOING)
		return fail("direction");

	/* The kernel has its own reference to the file, but the session is ours to hold. */
	close(memory);
	printf("preserved\n");
	fflush(stdout);
	for (;;)
		pause();
}

static int retrieve(const char *name)
{
	char text[256];
	int session = liveupdate_take(name);
	int memory;
	ssize_t len;

	if (session < 0)
		return fail("take");
	memory = liveupdate_retrieve(session, TOKEN);
	if (memory < 0) {
		fail("retrieve");
		/* Closing it would destroy what is in it. Another process may want to look. */
		for (;;)
			pause();
	}
	len = pread(memory, text, sizeof(text), 0);
	if (len < 0) {
		perror("hold: read");
		return 1;
	}
	printf("%.*s\n", (int)len, text);
	if (liveupdate_finish(session))
		return fail("finish");
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "preserve"))
		return preserve(argv[2], argv[3]);
	if (argc == 3 && !strcmp(argv[1], "retrieve"))
		return retrieve(argv[2]);
	fprintf(stderr, "usage: hold preserve SESSION TEXT | hold retrieve SESSION\n");
	return 2;
}
