#!/usr/bin/env python3
"""The application of `make bench-readers`: HTTP/1.1, one thread, reads as slowly as the path says.

`reader_app.py ADDRESS PORT CONTROL_PORT [SEND_BUFFER]`. `GET /bytes/N` answers N bytes, `GET /drip/N` likewise but
10 kB a second; `POST /never` is never read, `POST /slow` at 10 kB/s, `POST /sink` as fast as it comes and answered,
when it is whole, with the monotonic time at which each `MARK` of it was there; all else is answered with 64 bytes.

What it has sent and nobody has read waits in its own send buffer: `SEND_BUFFER` bounds that, because a thousand that the
kernel tunes by itself use up `tcp_mem`, and then the kernel drops packets of everybody on the machine.
"""

import json
import re
import socket
import sys
import time

from reader_loop import READ, WRITE, Loop

SLOW_PER_S = 10_000

SEND_BUFFER = 256 * 1024

MARK = 16 << 20

ZEROS = memoryview(bytes(1 << 20))
SCRATCH = bytearray(1 << 20)


class Served:
    """A connection."""

    def __init__(self, app, sock):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if app.send_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, app.send_buffer)
        self.app, self.sock = app, sock
        self.head = b""
        self.unread = 0  # of the request's body
        self.unsent = 0  # of the response's
        self.marks = []  # when so many times MARK had been read
        self.read = 0
        self.path = ""
        app.loop.watch(sock, READ, self.ready)

    def ready(self, events):
        try:
            if self.unsent:
                self.send()
            elif self.unread:
                self.read_body()
            elif self.path in ("/never", "/slow"):
                self.end()  # not asked to be told of anything but the end
            else:
                self.read_head()
        except BlockingIOError:
            pass
        except OSError:
            self.end()

    def end(self):
        self.app.loop.close(self.sock)
        self.path = ""

    def read_head(self):
        got = self.sock.recv(65536)
        if not got:
            return self.end()
        self.head += got
        head, ends, rest = self.head.partition(b"\r\n\r\n")
        if not ends:
            return None
        self.head = b""
        method, self.path = head.split(b" ", 2)[:2]
        self.path = self.path.decode()
        length = re.search(rb"(?im)^content-length: *(\d+)", head)
        self.app.requests += 1
        if self.path in ("/never", "/slow"):
            self.app.loop.watch(self.sock, 0, self.ready)
            self.app.began[self.path] += 1
            if self.path == "/slow":
                self.app.loop.after(self.app.next_phase(), self.read_slowly)
            return None
        self.unread = (int(length[1]) if length else 0) - len(rest)
        self.read, self.marks = len(rest), []
        return self.answer() if self.unread <= 0 else self.read_body()

    def read_body(self):
        while self.unread > 0:
            count = self.sock.recv_into(SCRATCH)
            if not count:
                return self.end()
            self.unread -= count
            self.read += count
            if self.read // MARK > len(self.marks):
                self.marks.append(time.monotonic())
        return self.answer()

    def read_slowly(self):
        if self.path != "/slow":
            return
        try:
            count = len(self.sock.recv(SLOW_PER_S))
            self.app.slow_bytes += count
            if not count:
                return self.end()
        except BlockingIOError:
            pass
        except OSError:
            return self.end()
        self.app.loop.after(1, self.read_slowly)

    def answer(self):
        size = re.fullmatch(r"/(?:bytes|drip)/(\d+)", self.path)
        marks = json.dumps(self.marks).encode()
        self.unsent = int(size[1]) if size else len(marks) if self.marks else 64
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n" % self.unsent
        if not size:
            self.unsent = 0
            return self.sock.sendall(head + (marks if self.marks else ZEROS[:64]))
        self.sock.sendall(head)
        if self.path.startswith("/drip"):
            return self.drip()
        self.app.loop.watch(self.sock, WRITE, self.ready)
        return self.send()

    def drip(self):
        try:
            self.unsent -= self.sock.send(ZEROS[:min(self.unsent, SLOW_PER_S)])
        except OSError:
            return self.end()
        return self.app.loop.after(1, self.drip) if self.unsent else None

    def send(self):
        while self.unsent:
            self.unsent -= self.sock.send(ZEROS[:self.unsent])
        self.app.loop.watch(self.sock, READ, self.ready)


class App:
    def __init__(self, address, port, control, send_buffer=SEND_BUFFER):
        self.loop, self.send_buffer = Loop(), send_buffer
        self.requests = self.slow_bytes = 0
        self.began = {"/never": 0, "/slow": 0}
        self.loop.listen(port, lambda sock: Served(self, sock), address)
        self.loop.tell(control, lambda: {"requests": self.requests, "slow_bytes": self.slow_bytes,
                                         "began": self.began})

    def next_phase(self):
        """Slow readers take turns, evenly over a second."""
        return (self.began["/slow"] * 0.002) % 1

    def run(self):
        self.loop.run()


if __name__ == "__main__":
    App(sys.argv[1], *map(int, sys.argv[2:])).run()
