# SPDX-License-Identifier: GPL-2.0
"""Holds a guest's first processor in the middle of a function, while the others go on.

As a host does that is busy: any processor of a virtual machine may stand still between any two
instructions. So what a function must not do, even for a moment, can be shown: it is held at each
instruction of its way in turn. QEMU's gdb server does that, and nothing changes in the guest.
"""

import os
import socket
import struct
import tempfile
import threading
import time
from pathlib import Path

from common import Failed

# How long each time: as long as it takes the other processors to use so much of the host's time, in
# seconds, but no longer than a few of those.
HOLD, AT_MOST = 0.15, 3
# How long the function may not be called before its time is over, in seconds.
PATIENCE = 10
# How many instructions are looked at to learn the function's way.
STEPS = 4000


def function(system_map: Path, name: str) -> range:
    """Where the kernel's function is whose name begins so."""
    lines = [line.split() for line in system_map.read_text().splitlines()]
    for (start, kind, symbol), (end, _, _) in zip(lines, lines[1:]):
        if symbol.startswith(name) and kind in "tT":
            return range(int(start, 16), int(end, 16))
    raise Failed(f"the kernel has no function {name}...")


class Gone(Exception):
    """QEMU has ended, or does not answer."""


class Stub:
    """QEMU's gdb server."""

    def __init__(self, path: Path):
        self.buffer = b""
        end = time.monotonic() + 30
        while True:
            try:
                self.socket = socket.socket(socket.AF_UNIX)
                self.socket.connect(str(path))
                return
            except OSError as why:
                self.socket.close()
                if time.monotonic() > end:
                    raise Gone from why
                time.sleep(0.05)

    def write(self, raw: bytes) -> None:
        try:
            self.socket.sendall(raw)
        except OSError as why:
            raise Gone from why

    def send(self, text: str) -> None:
        raw = text.encode()
        self.write(b"$%s#%02x" % (raw, sum(raw) % 256))

    def receive(self, timeout: float | None) -> str | None:
        """The next packet; nothing if none comes in time."""
        self.socket.settimeout(timeout)
        while True:
            begin, end = self.buffer.find(b"$"), self.buffer.find(b"#")
            if 0 <= begin < end and len(self.buffer) >= end + 3:
                text, self.buffer = self.buffer[begin + 1:end], self.buffer[end + 3:]
                self.write(b"+")
                return text.decode(errors="replace")
            if end >= 0 > begin:
                self.buffer = self.buffer[end + 1:]
            try:
                more = self.socket.recv(4096)
            except TimeoutError:
                return None
            except OSError as why:
                raise Gone from why
            if not more:
                raise Gone
            self.buffer += more

    def used(self) -> float:
        """How much of the host's time QEMU has used, in seconds."""
        process, _, _ = struct.unpack("3i", self.socket.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
        except OSError as why:
            raise Gone from why
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self, text: str) -> str:
        self.send(text)
        answer = self.receive(30)
        if answer is None:
            raise Gone
        return answer

    def stop(self) -> None:
        """Stops all processors that run."""
        self.write(b"\x03")
        if self.receive(30) is None:
            raise Gone

    def go(self, threads: list[str] | None = None) -> None:
        """Lets processors run, by default all."""
        self.send("vCont;" + (";".join(f"c:{thread}" for thread in threads) if threads else "c"))

    def address(self, thread: str) -> int:
        """Where a processor is."""
        self.ask(f"Hg{thread}")
        # The seventeenth register, in the guest's order of bytes.
        return int.from_bytes(bytes.fromhex(self.ask("g")[16 * 16:17 * 16]), "little")


class Holder(threading.Thread):
    """Holds the first processor at each instruction of a function, from the first call on.

    Where the name of the function is empty, it does nothing.
    """

    def __init__(self, system_map: Path, name: str):
        super().__init__(daemon=True)
        self.where = function(system_map, name) if name else range(0)
        self.function = name
        self.held = 0

    @property
    def options(self) -> list[str]:
        """What QEMU must be started with. It begins when this thread has come."""
        if not self.function:
            return []
        return ["-S", "-gdb", "chardev:gdb", "-chardev",
                f"socket,id=gdb,path={self.path},server=on,wait=off"]

    @property
    def trouble(self) -> str:
        """Why it did not do its work."""
        if self.function and not self.held:
            return f"nobody was held: {self.function}... was not called, or not where it was looked for"
        return ""

    def __enter__(self) -> "Holder":
        if self.function:
            # Where paths are short enough for a socket.
            self.temporary = tempfile.TemporaryDirectory()
            self.path = Path(self.temporary.name) / "gdb"
            self.start()
        return self

    def __exit__(self, *_) -> None:
        if self.function:
            # QEMU has ended, and with it the socket.
            self.join()
            self.temporary.cleanup()

    def run(self) -> None:
        try:
            stub = Stub(self.path)
            stub.ask("?")
            self.hold(stub)
            stub.go()
            # The server must be there as long as the guest is.
            while True:
                stub.receive(None)
        except Gone:
            pass

    def come_by(self, stub: Stub, address: int, timeout: float | None) -> bool:
        """Lets all run until a processor is at an address."""
        stub.ask(f"Z1,{address:x},1")
        stub.go()
        came = stub.receive(timeout) is not None
        if not came:
            stub.stop()
        stub.ask(f"z1,{address:x},1")
        return came

    def way(self, stub: Stub, thread: str) -> list[int]:
        """The instructions of the function on its way from here, in order."""
        seen: dict[int, None] = {}
        for _ in range(STEPS):
            address = stub.address(thread)
            if address in self.where:
                seen[address] = None
            stub.ask(f"vCont;s:{thread}")
        return list(seen)

    def hold(self, stub: Stub) -> None:
        # However long it takes to boot.
        self.come_by(stub, self.where.start, None)
        threads = stub.ask("qfThreadInfo").removeprefix("m").split(",")
        for address in self.way(stub, threads[0]):
            if not self.come_by(stub, address, PATIENCE):
                return
            begin, used = time.monotonic(), stub.used()
            stub.go(threads[1:])
            while stub.used() - used < HOLD and time.monotonic() - begin < AT_MOST:
                time.sleep(0.01)
            stub.stop()
            self.held += 1
