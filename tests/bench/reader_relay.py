#!/usr/bin/env python3
"""A long path for `make bench-readers`: what goes in comes out later, at a given rate.

`reader_relay.py CONTROL_PORT JSON`, with {"delay_s": each way, "per_s": bytes a second each way or 0, "routes": [[listen
address, port, target address, port, source address]]}. A queue for each direction of each connection; an entry leaves
when it is old enough and the link is free. Up to `QUEUE_MAX` are under way, then nothing more is read: far more than
the link carries in a delay, so the path is limited by delay and rate and not by the relay's own buffer.

Both ends' TCP sees a short path; so what waits for a round trip of its own, as flow control of HTTP/2 does, is slowed
by the path and a plain TCP connection is not, except by the rate.
"""

import json
import socket
import sys
import time
from collections import deque

from reader_loop import READ, WRITE, Loop

QUEUE_MAX = 64 << 20
CHUNK = 256 << 10
BUFFER = 4 << 20


class Direction:
    """From one socket to the other."""

    def __init__(self, relay, pipe, source, sink):
        self.relay, self.pipe, self.source, self.sink = relay, pipe, source, sink
        self.queue, self.queued = deque(), 0  # (due, bytes), of which empty ones are the end
        self.free_at = 0.0
        self.ended = self.armed = False

    def wants(self):
        return not self.ended and self.queued < QUEUE_MAX

    def read(self):
        try:
            while self.wants():
                got = self.source.recv(CHUNK)
                now = time.monotonic()
                # The last byte of it is on the link only after all before it.
                self.free_at = max(self.free_at, now) + (len(got) / self.relay.per_s if self.relay.per_s else 0)
                self.queue.append((self.free_at + self.relay.delay_s, memoryview(got)))
                self.queued += len(got)
                self.ended = not got
        except BlockingIOError:
            pass

    def write(self):
        """What is due; the next is waited for."""
        try:
            while self.queue:
                due, data = self.queue[0]
                now = time.monotonic()
                if due > now:
                    return self.arm(due - now)
                if not data:
                    self.queue.popleft()
                    self.sink.shutdown(socket.SHUT_WR)
                    return None
                sent = self.sink.send(data)
                self.queued -= sent
                if sent == len(data):
                    self.queue.popleft()
                else:
                    self.queue[0] = (due, data[sent:])
        except BlockingIOError:
            pass
        return None

    def arm(self, seconds):
        if not self.armed:
            self.armed = True
            self.relay.loop.after(seconds, self.wake)

    def wake(self):
        self.armed = False
        self.pipe.ready(self.source, 0)

    def blocked(self):
        """Something is due that the sink did not take."""
        return bool(self.queue) and self.queue[0][0] <= time.monotonic() and not self.armed


class Pipe:
    def __init__(self, relay, near, target, source):
        self.relay = relay
        far = socket.socket()
        for sock in (near, far):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        far.bind((source, 0))
        far.connect(target)
        for sock in (near, far):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.out, self.back = Direction(relay, self, near, far), Direction(relay, self, far, near)
        self.ends = {near: (self.out, self.back), far: (self.back, self.out)}
        self.watch()

    def ready(self, sock, events):
        try:
            for direction in (self.out, self.back):
                direction.read()
                direction.write()
            if self.out.ended and self.back.ended and not self.out.queue and not self.back.queue:
                return self.close()
        except OSError:
            return self.close()
        return self.watch()

    def watch(self):
        for sock, (source_of, sink_of) in self.ends.items():
            events = (READ if source_of.wants() else 0) | (WRITE if sink_of.blocked() else 0)
            self.relay.loop.watch(sock, events, lambda events, sock=sock: self.ready(sock, events))

    def close(self):
        for sock in self.ends:
            self.relay.loop.close(sock)
        for direction in (self.out, self.back):
            direction.queue.clear()


class Relay:
    def __init__(self, plan):
        self.loop = Loop()
        self.delay_s, self.per_s = plan["delay_s"], plan["per_s"]
        for address, port, to, to_port, source in plan["routes"]:
            self.loop.listen(port, lambda near, far=(to, to_port), source=source: Pipe(self, near, far, source),
                             address)


if __name__ == "__main__":
    relay = Relay(json.loads(sys.argv[2]))
    relay.loop.tell(int(sys.argv[1]), dict)
    relay.loop.run()
