#!/usr/bin/env python3
"""The callers of `make bench-readers`: downloads that are read slowly or not at all, uploads that go as they can.

`reader_callers.py CONTROL_PORT JSON`, with {"version": 1 or 2, "method", "path", "size", "targets": ["ADDRESS:PORT", …],
"groups": [["stop", 500], ["slow", 500]]}. A download of `stop` is read no further than its first bytes, one of `slow`
at 10 kB/s, one of `pause:SECONDS` not for so long after its half, one of `all` at once. Over HTTP/1.1 each caller has
a connection of its own and does not read from its socket; over HTTP/2 fifty share one, which is read, and a stream's
window is not opened. An upload is sent as fast as it is taken; a path for each group follows its name: `stop/never`.
"""

import json
import random
import re
import socket
import sys
import time
from collections import deque

import frames
from reader_loop import READ, WRITE, Loop

SLOW_PER_S = 10_000
STREAMS = 50
UNSENT_MAX = 1 << 18
# In the kernel, for each socket: a thousand that it tunes by itself use up the machine's `tcp_mem`.
SEND_BUFFER = 256 * 1024
PAUSED_WINDOW = 1 << 20

ZEROS = bytes(1 << 20)


class Caller:
    """One request, whatever carries it."""

    def __init__(self, all_of_them, mode, target, path):
        self.all, self.target, self.path = all_of_them, target, path
        self.mode, _, seconds = mode.partition(":")
        self.pause_s = float(seconds or 0)
        self.status = self.error = self.ended_at = None
        self.received = self.taken = self.sent = 0
        self.paused = self.pausing = False

    @property
    def size(self):
        return self.all.plan["size"]

    def end(self, error):
        if self.ended_at is None:
            self.ended_at, self.error = time.monotonic(), error

    def should_pause(self):
        """Once, after the half."""
        if self.mode != "pause" or self.paused or self.received < self.size / 2:
            return False
        self.paused = self.pausing = True
        return True

    def tell(self):
        return {"mode": self.mode, "status": self.status, "received": self.received, "sent": self.sent,
                "ended_at": self.ended_at, "error": self.error}


class Http1(Caller):
    """On a connection of its own."""

    def begin(self):
        self.sock = connected(self.target)
        upload = self.all.plan["method"] == "POST"
        head = f"{self.all.plan['method']} {self.path} HTTP/1.1\r\nhost: reader\r\n"
        head += f"content-length: {self.size}\r\n\r\n" if upload else "\r\n"
        self.out = memoryview(head.encode())
        self.unsent = self.size if upload else 0
        self.head = b""
        self.all.loop.watch(self.sock, READ | WRITE, self.ready)

    def ready(self, events):
        try:
            if events & WRITE:
                self.write()
            if events & READ:
                self.read()
        except BlockingIOError:
            pass
        except OSError as error:
            self.close(type(error).__name__)

    def write(self):
        while self.out:
            self.out = self.out[self.sock.send(self.out):]
        while self.unsent:
            count = self.sock.send(ZEROS[:self.unsent])
            self.unsent -= count
            self.sent += count
        self.all.loop.watch(self.sock, READ, self.ready)

    def read(self):
        got = self.sock.recv(1 << 18 if self.mode in ("all", "pause") else 4096)
        if not got:
            return self.close("closed")
        if self.status is None:
            self.head += got
            head, ends, got = self.head.partition(b"\r\n\r\n")
            if not ends:
                return None
            self.status = int(head.split()[1])
            if self.all.plan["method"] == "POST":
                return self.close(None if self.status == 200 else "answered")
        self.received += len(got)
        if self.received >= self.size:
            return self.close(None)
        if self.mode in ("stop", "slow"):
            self.all.loop.watch(self.sock, 0, self.ready)
            if self.mode == "slow":
                self.all.loop.after(self.all.next_phase(), self.read_slowly)
        elif self.should_pause():
            self.all.loop.watch(self.sock, 0, self.ready)
            self.all.loop.after(self.pause_s, self.go_on)
        return None

    def go_on(self):
        if self.ended_at is None:
            self.pausing = False
            self.all.loop.watch(self.sock, READ, self.ready)

    def read_slowly(self):
        if self.ended_at is not None:
            return
        try:
            got = len(self.sock.recv(SLOW_PER_S))
            if not got:
                return self.close("closed")
            self.received += got
            self.taken += got
        except BlockingIOError:
            pass
        except OSError as error:
            return self.close(type(error).__name__)
        self.all.loop.after(1, self.read_slowly)

    def close(self, error):
        self.end(error)
        self.all.loop.close(self.sock)


class Http2(Caller):
    """A stream of a shared connection."""

    def begin(self, connection, number):
        self.connection, self.number = connection, number
        upload = self.all.plan["method"] == "POST"
        self.unsent = self.size if upload else 0
        self.window = connection.stream_window
        self.unread = 0
        connection.out += frames.request(number, self.all.plan["method"], "reader", self.path,
                                         self.size if upload else None)
        if self.mode == "slow" and not upload:
            self.all.loop.after(self.all.next_phase(), self.read_slowly)

    def arrived(self, count):
        self.received += count
        self.unread += count
        if self.mode in ("all", "pause") and not self.pausing:
            if self.should_pause():
                self.all.loop.after(self.pause_s, self.go_on)
            else:
                self.take(self.unread)

    def go_on(self):
        self.pausing = False
        self.take(self.unread)
        self.connection.write()

    def read_slowly(self):
        if self.ended_at is not None:
            return
        self.taken += self.take(min(self.unread, SLOW_PER_S))
        self.connection.write()
        self.all.loop.after(1, self.read_slowly)

    def take(self, count):
        self.unread -= count
        if count and self.ended_at is None:
            self.connection.out += frames.window_update(self.number, count)
        return count


class Connection:
    """HTTP/2 of a client; reads whatever comes, so that only streams' windows are closed."""

    def __init__(self, loop, target, callers, window):
        self.loop = loop
        self.sock = connected(target)
        self.received = bytearray()
        self.unread = 0
        self.window = self.stream_window = frames.WINDOW_DEFAULT
        self.out = bytearray(frames.opening(window))
        self.callers = {2 * n + 1: caller for n, caller in enumerate(callers)}
        for number, caller in self.callers.items():
            caller.begin(self, number)
        self.turns = deque(self.callers.values())
        self.events = READ | WRITE
        loop.watch(self.sock, self.events, self.ready)

    def ready(self, events):
        try:
            if events & READ:
                self.read()
            self.write()
        except BlockingIOError:
            pass
        except OSError as error:
            self.end(type(error).__name__)

    def end(self, error):
        for caller in self.callers.values():
            caller.end(error)
        self.loop.close(self.sock)

    def fill(self):
        """DATA of the streams that may send, a frame each in turn."""
        while self.turns and self.window > 0 and len(self.out) < UNSENT_MAX:
            caller = self.turns.popleft()
            count = min(caller.unsent, caller.window, self.window, frames.FRAME_MAX)
            if count <= 0 or caller.ended_at is not None:
                continue  # comes back with its window
            caller.unsent -= count
            caller.window -= count
            caller.sent += count
            self.window -= count
            flags = 0 if caller.unsent else frames.END_STREAM
            self.out += frames.frame(frames.DATA, flags, caller.number, ZEROS[:count])
            self.turns.append(caller)

    def write(self):
        if self.sock.fileno() < 0:
            return
        try:
            while self.fill() or self.out:
                del self.out[:self.sock.send(self.out)]
        except BlockingIOError:
            pass
        events = READ | (WRITE if self.out else 0)
        if events != self.events:
            self.events = events
            self.loop.watch(self.sock, events, self.ready)

    def read(self):
        got = self.sock.recv(1 << 20)
        if not got:
            return self.end("closed")
        self.received += got
        for frame in frames.split(self.received):
            self.handle(*frame)
        return None

    def handle(self, kind, flags, stream, payload):
        caller = self.callers.get(stream)
        if kind == frames.DATA:
            self.unread += len(payload)
            if self.unread > 1 << 20:
                self.out += frames.window_update(0, self.unread)
                self.unread = 0
            caller.arrived(len(payload))
        elif kind == frames.HEADERS and caller.status is None:
            caller.status = 200 if frames.is_ok(payload) else 0
        elif kind == frames.RST_STREAM:
            caller.end(f"reset {int.from_bytes(payload, 'big')}")
        elif kind == frames.SETTINGS and not flags & frames.ACK:
            self.set(payload)
        elif kind == frames.PING and not flags & frames.ACK:
            self.out += frames.frame(frames.PING, frames.ACK, 0, payload)
        elif kind == frames.WINDOW_UPDATE:
            self.open(caller, int.from_bytes(payload, "big"))
        if kind in (frames.DATA, frames.HEADERS) and flags & frames.END_STREAM:
            caller.end(None if caller.status == 200 else "answered")

    def set(self, payload):
        for at in range(0, len(payload), 6):
            if int.from_bytes(payload[at:at + 2], "big") == frames.INITIAL_WINDOW_SIZE:
                window = int.from_bytes(payload[at + 2:at + 6], "big")
                for caller in self.callers.values():
                    self.open(caller, window - self.stream_window)
                self.stream_window = window
        self.out += frames.frame(frames.SETTINGS, frames.ACK, 0)

    def open(self, caller, by):
        if caller is None:
            self.window += by
            self.turns.extend(c for c in self.callers.values() if c.unsent and c not in self.turns)
        else:
            caller.window += by
            if caller.unsent and caller not in self.turns:
                self.turns.append(caller)


class Callers:
    """All of them."""

    def __init__(self, plan):
        self.plan, self.loop, self.callers, self.phase = plan, Loop(), [], 0
        kind = Http1 if plan["version"] == 1 else Http2
        targets = plan["targets"]
        for group, count in plan["groups"]:
            mode, slash, path = group.partition("/")
            for _ in range(count):
                target = targets[len(self.callers) % len(targets)]
                self.callers.append(kind(self, mode, target, slash + path or plan["path"]))
        # The groups mixed, so that a connection has streams of each.
        random.Random(0).shuffle(self.callers)

    def begin(self):
        if self.plan["version"] == 1:
            for n, caller in enumerate(self.callers):
                self.loop.after(n * 0.001, caller.begin)
            return
        window = PAUSED_WINDOW if self.plan["groups"][0][0][:1] in "pa" else frames.WINDOW_DEFAULT
        for target in self.plan["targets"]:
            mine = [caller for caller in self.callers if caller.target == target]
            for at in range(0, len(mine), STREAMS):
                Connection(self.loop, target, mine[at:at + STREAMS], window)

    def next_phase(self):
        """Slow readers take turns, evenly over a second."""
        self.phase += 1
        return (self.phase * 0.002) % 1

    def state(self):
        callers = [caller.tell() for caller in self.callers]
        return {"callers": len(callers), "heads": sum(c["status"] == 200 for c in callers),
                "bad": sum(c["status"] not in (200, None) for c in callers),
                "broken": sum(c["error"] is not None for c in callers),
                "taken": sum(c.taken for c in self.callers), "received": sum(c["received"] for c in callers),
                "sent": sum(c["sent"] for c in callers),
                **({"each": callers} if len(callers) <= 8 else {})}


def connected(target):
    address, port = re.fullmatch(r"(.*):(\d+)", target).groups()
    sock = socket.create_connection((address, int(port)))
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


if __name__ == "__main__":
    everybody = Callers(json.loads(sys.argv[2]))
    everybody.loop.tell(int(sys.argv[1]), everybody.state)
    everybody.begin()
    everybody.loop.run()
