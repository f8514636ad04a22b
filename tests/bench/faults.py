"""What happens to backends while they serve: pauses (SIGSTOP of the whole process group) and slowness.

A fault is a list of (when, action), in seconds from its start, made beforehand: what is drawn comes from a seed, so
that all arms of a round suffer the same. `Faults` plays it from a thread of its own and undoes it in the end.
"""

import random
import signal
import threading
import time
from functools import partial


def pauses(servers, seed, seconds, pause_s, mean_gap_s):
    """Each server on its own: gaps at random, exponential with this mean, then a pause."""
    events = []
    for number, server in enumerate(servers):
        draw = random.Random(f"{seed}/{number}")
        at = draw.uniform(0, pause_s + mean_gap_s)
        while at + pause_s < seconds:
            events += pause([server], at, pause_s)
            at += pause_s + draw.expovariate(1 / mean_gap_s)
    return events


def pauses_together(servers, seed, seconds, pause_s, mean_gap_s):
    """All servers at once, else as `pauses`."""
    events, draw = [], random.Random(f"{seed}/together")
    at = draw.uniform(0, pause_s + mean_gap_s)
    while at + pause_s < seconds:
        events += pause(servers, at, pause_s)
        at += pause_s + draw.expovariate(1 / mean_gap_s)
    return events


def staggered(servers, seconds, pause_s, every_s):
    """Each server once in a period, one after the other, evenly spread over it."""
    events = []
    for number, server in enumerate(servers):
        at = every_s * number / len(servers)
        while at + pause_s < seconds:
            events += pause([server], at, pause_s)
            at += every_s
    return events


def pause(servers, at, pause_s):
    return ([(at, partial(server.process.signal, signal.SIGSTOP)) for server in servers]
            + [(at + pause_s, partial(server.process.signal, signal.SIGCONT)) for server in servers])


def slow(servers, at, until, delay_ms):
    """Servers with a delay of their own have this one for a while."""
    return ([(at, partial(server.delay, delay_ms)) for server in servers]
            + [(until, partial(server.delay, server.delay_ms)) for server in servers])


class Faults:
    """Plays what was planned; leaves nobody stopped."""

    def __init__(self, servers, events):
        self.servers = servers
        self.events = sorted(events, key=lambda event: event[0])
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._play)
        self.error = None
        self.count = 0
        self.late_s = 0.0

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        for server in self.servers:
            server.process.signal(signal.SIGCONT)
        if self.error:
            raise SystemExit(f"bench: a fault could not be played: {self.error}")

    def _play(self):
        try:
            self._play_all()
        except OSError as error:
            self.error = error

    def _play_all(self):
        start = time.monotonic()
        for at, act in self.events:
            if self.over.wait(max(start + at - time.monotonic(), 0)):
                return
            act()
            self.count += 1
            self.late_s = max(self.late_s, time.monotonic() - start - at)
