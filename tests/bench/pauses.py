"""Six backends that are stopped 100 ms about once a second, each on its own: what the caller sees of it.

200 GETs a second in an open loop. All arms of a round get the same pauses (SIGSTOP to nginx's whole process group)
at the same moments, drawn from a seed; the next round has others. Extra requests are the lines in the backends' logs
beyond the requests that were sent. A warm-up under pauses comes first and is counted nowhere.
"""

import random
import signal
import threading
import time
from contextlib import ExitStack

from cost import in_turn
from load import at_rate
from processes import CpuClock
from proxies import Backend, Envoy, Evenkeel, HAProxy

RATE = 200
BACKENDS = 6
PAUSE_S = 0.1
MEAN_GAP_S = 0.9
SEED = 20130213

ENVOY_ARMS = {"envoy 2 ms, 4 retries": ("0.002s", 4), "envoy 1 ms, 2 retries": ("0.001s", 2)}
ARMS = ("evenkeel", "evenkeel, no hedging", "evenkeel, two hosts", "haproxy", *ENVOY_ARMS)


def measure(tools, work, times, say):
    runs = []
    for number in range(times.rounds):
        for arm in in_turn(ARMS, number):
            run = one(tools, work, times, arm, SEED + number)
            run.update(arm=arm, round=number)
            say(f"pauses {arm}: p50 {run['p50_us'] / 1e3:.2f} ms, p99 {run['p99_us'] / 1e3:.2f} ms, "
                f"p99.9 {run['p999_us'] / 1e3:.2f} ms, {run['failed']} failed, {run['extra']:.2%} extra")
            runs.append(run)
    return {"rate_per_sec": RATE, "runs": runs}


def one(tools, work, times, arm, seed):
    with ExitStack() as stack:
        servers = [stack.enter_context(Backend(tools, work, f"paused-{n}", counted=True)) for n in range(BACKENDS)]
        under_test = start(stack, tools, work, arm, servers)
        pauses = Pauses([server.process for server in servers], seed, times.pauses_warm_s + times.pauses_s + 1)
        with pauses:
            at_rate(tools, RATE, times.pauses_warm_s, under_test.port)
            settle()
            before = read(servers)
            clock = CpuClock(under_test.process.pid)
            run = at_rate(tools, RATE, times.pauses_s, under_test.port)
            run.update(clock.per_request(run["sent"]))
        settle()
        run.update(at_backends=read(servers) - before, pauses=pauses.count, pause_late_ms=pauses.late_s * 1e3)
        run["extra"] = run["at_backends"] / run["sent"] - 1
        if isinstance(under_test, Evenkeel):
            run["hedges_since_start"] = under_test.metric("evenkeel_hedges_total")
        return run


def start(stack, tools, work, arm, servers):
    if arm == "haproxy":
        return stack.enter_context(HAProxy(tools, work, servers, "leastconn"))
    if arm in ENVOY_ARMS:
        return stack.enter_context(Envoy(tools, work, servers, *ENVOY_ARMS[arm]))
    policy = {"hedge": {"mode": "off" if arm.endswith("no hedging") else "enforce"}}
    if not arm.endswith("two hosts"):
        return stack.enter_context(Evenkeel(tools, work, "client", backends=servers, policy=policy))
    host = stack.enter_context(Evenkeel(tools, work, "host", offers=servers, address="127.0.0.2"))
    client = stack.enter_context(Evenkeel(tools, work, "client-of-host", join=[host.gossip], policy=policy))
    client.wait_for_instances(BACKENDS)
    return client


def settle():
    """A request that a stopped backend was sent is read when its pause ends."""
    time.sleep(2 * PAUSE_S)


def read(servers):
    return sum(server.requests() for server in servers)


def schedule(seed, backends, seconds):
    """(when, which backend, the signal), in order: gaps of 0.9 s in the mean at random, then a pause."""
    events = []
    for backend in range(backends):
        draw = random.Random(f"{seed}/{backend}")
        at = draw.uniform(0, 1)
        while at + PAUSE_S < seconds:
            events += [(at, backend, signal.SIGSTOP), (at + PAUSE_S, backend, signal.SIGCONT)]
            at += PAUSE_S + draw.expovariate(1 / MEAN_GAP_S)
    return sorted(events)


class Pauses:
    """Plays a schedule from a thread of its own, and leaves nobody stopped."""

    def __init__(self, processes, seed, seconds):
        self.processes = processes
        self.events = schedule(seed, len(processes), seconds)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._play)
        self.count = 0
        self.late_s = 0.0

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        for process in self.processes:
            process.signal(signal.SIGCONT)

    def _play(self):
        start = time.monotonic()
        for at, backend, number in self.events:
            if self.over.wait(max(start + at - time.monotonic(), 0)):
                return
            self.processes[backend].signal(number)
            self.count += number == signal.SIGSTOP
            self.late_s = max(self.late_s, time.monotonic() - start - at)
