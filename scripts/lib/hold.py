# SPDX-License-Identifier: GPL-2.0
"""Holds a guest's first processor in the middle of a function, while the others go on.

As a host does that is busy: any processor of a virtual machine may stand still between any two
instructions. So what a function must not do, even for a moment, can be shown: it is held at each
instruction of its way in turn. QEMU's gdb server does that, and nothing changes in the guest.
"""

import itertools
import os
import socket
import struct
import tempfile
import threading
import time
from pathlib import Path

from common import Failed
from machine import Registers

# How long each time: as long as it takes the other processors to use so much of the host's time, in
# seconds, but no longer than a few of those.
HOLD, AT_MOST = 0.15, 3
# How long the function may not be called before its time is over, in seconds.
PATIENCE = 10
# How many instructions are looked at, at most, to learn the function's way.
STEPS = 20_000


def functions(system_map: Path, names: list[str]) -> list[range]:
    """Where those of the kernel's functions are that are not part of others: at least one."""
    lines = [line.split() for line in system_map.read_text().splitlines()]
    found = [range(int(start, 16), int(end, 16))
             for (start, kind, symbol), (end, _, _) in itertools.pairwise(lines)
             if symbol in names and kind in "tT"]
    if not found:
        raise Failed(f"the kernel has none of the functions {', '.join(names)}")
    return found


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

    def threads(self) -> list[str]:
        """The processors."""
        found, answer = [], self.ask("qfThreadInfo")
        while answer.startswith("m"):
            found += answer[1:].split(",")
            answer = self.ask("qsThreadInfo")
        return found

    def register(self, thread: str, number: int) -> int:
        """A register of a processor."""
        self.ask(f"Hg{thread}")
        return int.from_bytes(bytes.fromhex(self.ask(f"p{number:x}")), "little")

    def word(self, address: int) -> int:
        """A word of memory."""
        answer = self.ask(f"m{address:x},8")
        return 0 if answer.startswith("E") else int.from_bytes(bytes.fromhex(answer), "little")


class Holder(threading.Thread):
    """Holds the first processor at each instruction of some functions, from the first call on.

    Where no function is named, it does nothing.
    """

    def __init__(self, system_map: Path, names: list[str], registers: Registers):
        super().__init__(daemon=True)
        self.names = names
        self.registers = registers
        self.functions = functions(system_map, names) if names else []
        self.held = 0

    @property
    def options(self) -> list[str]:
        """What QEMU must be started with. It begins when this thread has come."""
        if not self.names:
            return []
        return ["-S", "-gdb", "chardev:gdb", "-chardev",
                f"socket,id=gdb,path={self.path},server=on,wait=off"]

    @property
    def trouble(self) -> str:
        """Why it did not do its work."""
        if self.names and not self.held:
            return f"nobody was held: none of {', '.join(self.names)} was called"
        return ""

    def __enter__(self) -> "Holder":
        if self.names:
            # Where paths are short enough for a socket.
            self.temporary = tempfile.TemporaryDirectory()
            self.path = Path(self.temporary.name) / "gdb"
            self.start()
        return self

    def __exit__(self, *_) -> None:
        if self.names:
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

    def way(self, stub: Stub, function: range, thread: str) -> list[int]:
        """The instructions of a function on its way from here to its end, each once."""
        seen: dict[int, None] = {}
        for _ in range(STEPS):
            address = stub.register(thread, self.registers.pc)
            if address in function:
                seen[address] = None
                stub.ask(f"vCont;s:{thread}")
                continue
            # It has called another function, which returns here, and may have to wait for other
            # processors; or it has returned itself.
            back = stub.register(thread, self.registers.back)
            if self.registers.stacked:
                back = stub.word(back)
            if back not in function or not self.come_by(stub, back, PATIENCE):
                break
        return list(seen)

    def hold(self, stub: Stub) -> None:
        threads = stub.threads()
        for function in self.functions:
            # However long it takes to boot.
            if not self.come_by(stub, function.start, PATIENCE if self.held else None):
                continue
            for address in self.way(stub, function, threads[0]):
                if not self.come_by(stub, address, PATIENCE):
                    break
                begin, used = time.monotonic(), stub.used()
                stub.go(threads[1:])
                while stub.used() - used < HOLD and time.monotonic() - begin < AT_MOST:
                    time.sleep(0.01)
                stub.stop()
                self.held += 1
