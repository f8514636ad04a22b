"""What the callers and the application of `make bench-readers` have in common: one thread, epoll, timers.

A thousand connections that do nothing have to cost nothing, so that what is measured is the mesh. Whoever connects to
the control port is told the state as JSON.
"""

import heapq
import itertools
import json
import select
import socket
import time

READ, WRITE = select.EPOLLIN, select.EPOLLOUT


class Loop:
    """Calls what is watched when it is ready, and what is due when it is due."""

    def __init__(self):
        self.epoll = select.epoll()
        self.watched = {}
        self.timers = []
        self.order = itertools.count()

    def watch(self, sock, events, handler):
        """`handler(events)` from now on; 0 events: only when the connection breaks."""
        if sock.fileno() in self.watched:
            self.epoll.modify(sock.fileno(), events)
        else:
            self.epoll.register(sock.fileno(), events)
        self.watched[sock.fileno()] = handler

    def close(self, sock):
        if sock.fileno() >= 0:
            if self.watched.pop(sock.fileno(), None):
                self.epoll.unregister(sock.fileno())
            sock.close()

    def after(self, seconds, call):
        heapq.heappush(self.timers, (time.monotonic() + seconds, next(self.order), call))

    def run(self):
        while True:
            while self.timers and self.timers[0][0] <= time.monotonic():
                heapq.heappop(self.timers)[2]()
            wait = max(self.timers[0][0] - time.monotonic(), 0) if self.timers else -1
            for fd, events in self.epoll.poll(wait):
                handler = self.watched.get(fd)
                if handler:
                    handler(events)

    def listen(self, port, accepted, address="127.0.0.1"):
        listener = socket.create_server((address, port), backlog=4096)
        listener.setblocking(False)

        def handle(_):
            try:
                while True:
                    accepted(listener.accept()[0])
            except BlockingIOError:
                pass
        self.watch(listener, READ, handle)

    def tell(self, port, state):
        """On a control port, to everybody who connects."""
        def accepted(sock):
            sock.sendall(json.dumps(state()).encode())
            sock.close()
        self.listen(port, accepted)
