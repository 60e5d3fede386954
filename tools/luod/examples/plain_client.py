#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""A client of luod that speaks the published protocol, and nothing else.

    plain_client.py ID     keeps a counter in memory, over every live update

In the first kernel the counter begins with 0. Each time the program comes back after an
update, it goes on from where it was.
"""

import array
import contextlib
import fcntl
import json
import mmap
import os
import socket
import struct
import sys
import time

SOCKET = "/run/luod/liveupdate.sock"
# <linux/liveupdate.h>
PRESERVE_FD, RETRIEVE_FD, FINISH = 0xBA40, 0xBA41, 0xBA42
TOKEN = 1
START = ("START_PRESERVATION", "PRESERVATION_REQUEST")


class Luod:
    """A connection to luod: lines of JSON, with a descriptor now and then."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(SOCKET)
        self.data, self.descriptors = b"", []

    def say(self, **command):
        self.socket.sendall(json.dumps(command).encode() + b"\n")

    def hear(self):
        """The next event, and the descriptor that came with it. None at the end."""
        while b"\n" not in self.data:
            data, descriptors, _, _ = socket.recv_fds(self.socket, 4096, 4)
            if not data:
                return None, None
            self.data += data
            self.descriptors += descriptors
        line, self.data = self.data.split(b"\n", 1)
        event = json.loads(line)
        # One read may get several lines and the descriptor of a later one.
        has_session = event["event"] in (*START, "SESSION") and self.descriptors
        return event, self.descriptors.pop(0) if has_session else None


def preserve(session, file, token):
    fcntl.ioctl(session, PRESERVE_FD, struct.pack("IiQ", 16, file, token))


def retrieve(session, token):
    request = array.array("B", struct.pack("IiQ", 16, -1, token))
    fcntl.ioctl(session, RETRIEVE_FD, request)
    return struct.unpack("IiQ", request)[1]


def finish(session):
    fcntl.ioctl(session, FINISH, struct.pack("II", 8, 0))


def restore(name):
    """The memory of the last kernel, or None if there is none."""
    luod = Luod()   # fails if luod does not run: then the answer is not known
    luod.say(cmd="CLAIM", id=name)
    event, session = luod.hear()
    if session is None:
        print(f"{name}: nothing to restore ({event})", flush=True)
        return None
    memory = retrieve(session, TOKEN)
    finish(session)
    os.close(session)
    return memory


def take_part(name, memory, view):
    """Goes on counting, and takes part in updates, until the connection ends."""
    luod = Luod()
    luod.say(cmd="SUBSCRIBE", id=name)
    luod.socket.settimeout(1)
    while True:
        count = int.from_bytes(view[:8], "little") + 1
        view[:8] = count.to_bytes(8, "little")
        print(f"{name}: {count}", flush=True)
        try:
            event, session = luod.hear()
        except TimeoutError:
            continue
        if event is None:
            return
        if event["event"] == "ERROR":
            sys.exit(event["message"])
        if event["event"] in START:
            preserve(session, memory, TOKEN)
            luod.say(cmd="READY")
            # What happens from now on would not be in the next kernel: wait for that, or for an
            # ABORT. The end of the connection is one, too.
            luod.socket.settimeout(None)
            while event is not None and event["event"] != "ABORT":
                event, _ = luod.hear()
            os.close(session)
            luod.socket.settimeout(1)


def main(name):
    memory = restore(name)
    if memory is None:
        memory = os.memfd_create(name)
        os.ftruncate(memory, mmap.PAGESIZE)
    with mmap.mmap(memory, mmap.PAGESIZE) as view:
        while True:
            with contextlib.suppress(ConnectionError, FileNotFoundError):
                take_part(name, memory, view)
            # luod is being started again.
            time.sleep(0.2)


if __name__ == "__main__":
    main(*sys.argv[1:])
