"""What an attacker does: many connections at once, or datagrams, until a moment, within stated bounds.

One process, one epoll loop, no threads: the attacker must cost little, for it shares the machine with what it attacks.
A connection says its `opening` and then, again and again, what `again` gives; it reads and forgets what comes, or
leaves it unread; it is opened anew when the other side closes it. What happened is counted and goes into the report.
"""

import errno
import os
import select
import socket
import struct
import time

# Of one attack, all connections together.
CONNECTIONS_MAX = 3_000
OPENED_MAX = 30_000
BYTES_MAX = 2 << 30

# For all connections to be opened: a thousand requests in one moment are a thousand requests, and no attack.
RAMP_S = 1.0

# The attacker gives way to the good client, whose figures are not about the attacker's appetite for the processor.
NICE = 5

READ_BYTES = 256 << 10
DATAGRAMS_AT_ONCE = 64

# A close that resets: no port of ours is left waiting.
RESET = struct.pack("ii", 1, 0)

OPEN, HUNG_UP = select.EPOLLOUT, select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Storm:
    """The attacks of one attacker on one address; `again` and `opening` are bytes, or what gives them.

    `opening(number)` is told which connection it is for, counted over all that were opened; `again(turn)` how often
    this connection was asked before, and may give None: nothing more. `sources`: the addresses it comes from, in turn.
    """

    def __init__(self, address, sources, seconds):
        self.address = address
        self.sources = sources
        self.until = time.monotonic() + seconds
        self.counts = {"opened": 0, "closed": 0, "refused": 0, "sent_bytes": 0, "turns": 0}

    def connections(self, count, opening=b"", again=None, every_s=0.0, reads=True, reopen=True, at_close=False):
        """Keeps `count` connections going. `at_close`: each is closed as soon as its opening is sent."""
        loop = Loop(self, opening, again, every_s, reads, at_close)
        count = min(count, CONNECTIONS_MAX)
        begun, wanted, begin = 0, 0, time.monotonic()
        while time.monotonic() < self.until and self.counts["sent_bytes"] < BYTES_MAX:
            due = min(count, 1 + int(count * (time.monotonic() - begin) / RAMP_S))
            wanted += due - begun
            begun = due
            for _ in range(wanted):
                loop.open()
            wanted = loop.turn() if reopen else 0
        loop.close()

    def datagrams(self, make, every_s=0.0):
        """Sends what `make(number)` gives, from one socket for each source; answers are not read."""
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in self.sources]
        for each, source in zip(sockets, self.sources):
            each.bind((source, 0))
            each.setblocking(False)
        number = 0
        while time.monotonic() < self.until and self.counts["sent_bytes"] < BYTES_MAX:
            for _ in range(DATAGRAMS_AT_ONCE):
                datagram = make(number)
                number += 1
                try:
                    sockets[number % len(sockets)].sendto(datagram, self.address)
                    self.counts["sent_bytes"] += len(datagram)
                    self.counts["turns"] += 1
                except OSError:
                    self.counts["refused"] += 1
            time.sleep(every_s)
        for each in sockets:
            each.close()


class Loop:
    """The connections of one attack, and what is due on each."""

    def __init__(self, storm, opening, again, every_s, reads, at_close):
        self.storm, self.counts = storm, storm.counts
        self.opening = opening if callable(opening) else lambda _: opening
        self.again = again if callable(again) or again is None else lambda _: again
        self.every_s, self.reads, self.at_close = every_s, reads, at_close
        self.epoll = select.epoll()
        self.live = {}

    def open(self):
        if self.counts["opened"] >= OPENED_MAX:
            return
        try:
            peer = Peer(self)
        except OSError:
            self.counts["refused"] += 1
            return
        self.live[peer.number] = peer
        self.epoll.register(peer.number, peer.interest())
        self.counts["opened"] += 1

    def turn(self):
        """What the kernel has for us, then what is due by the clock. Gives how many connections ended."""
        ended = 0
        for number, events in self.epoll.poll(0.02, 512):
            peer = self.live[number]
            if peer.happened(events):
                self.epoll.modify(number, peer.interest())
            else:
                self.drop(peer)
                ended += 1
        now = time.monotonic()
        if self.every_s and self.again:
            for peer in self.live.values():
                if peer.connected and not peer.pending and peer.due <= now:
                    peer.next(now)
                    self.epoll.modify(peer.number, peer.interest())
        return ended

    def drop(self, peer):
        del self.live[peer.number]
        self.epoll.unregister(peer.number)
        peer.socket.close()
        self.counts["closed"] += 1

    def close(self):
        for peer in self.live.values():
            peer.socket.close()
        self.counts["open_at_end"] = self.counts.get("open_at_end", 0) + len(self.live)
        self.epoll.close()


class Peer:
    """One connection of the attacker."""

    def __init__(self, loop):
        self.loop, storm = loop, loop.storm
        opened = loop.counts["opened"]
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        # Who comes from one port for each connection may come to one place more often than there are ports.
        self.socket.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not loop.reads:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.bind((storm.sources[opened % len(storm.sources)], 0))
        result = self.socket.connect_ex(storm.address)
        if result not in (0, errno.EINPROGRESS):
            self.socket.close()
            raise OSError(result, os.strerror(result))
        self.number = self.socket.fileno()
        self.pending = memoryview(loop.opening(opened))
        self.connected, self.turns, self.over, self.due = False, 0, False, 0.0

    def interest(self):
        wants = not self.connected or self.pending or self.floods()
        return HUNG_UP | (OPEN if wants else 0) | (select.EPOLLIN if self.loop.reads else 0)

    def floods(self):
        return self.loop.again is not None and not self.loop.every_s and not self.over

    def happened(self, events):
        """Gives whether the connection goes on."""
        if events & (select.EPOLLHUP | select.EPOLLERR):
            return False
        try:
            if events & select.EPOLLIN and not self.socket.recv(READ_BYTES):
                return False
            if events & select.EPOLLRDHUP and not events & select.EPOLLIN:
                return False
            if events & OPEN:
                self.connected = True
                return self.write()
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def write(self):
        if not self.pending and self.floods():
            self.next(time.monotonic())
        if self.pending:
            sent = self.socket.send(self.pending)
            self.loop.counts["sent_bytes"] += sent
            self.pending = self.pending[sent:]
        return bool(self.pending) or not self.loop.at_close

    def next(self, now):
        said = self.loop.again(self.turns)
        self.turns += 1
        self.loop.counts["turns"] += 1
        self.due = now + self.loop.every_s
        self.over = said is None
        self.pending = memoryview(said or b"")


# Of <linux/in.h>; Python's socket module has no name for it.
IP_BIND_ADDRESS_NO_PORT = 24
