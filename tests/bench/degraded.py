"""One of eleven backends goes from 167 ms to 2 s for half a minute: how many requests end within a second.

After Buoyant's "Beyond round robin" (2016): 1,000 GETs a second in an open loop for 60 s, slow from the 15th second to
the 45th. Two arms run side by side, each with backends and a load of its own, in every round other two: a few
milliseconds do not count here, and it saves half of the time. All four at once would be too much for two cores.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import arms
import faults
from arms import ENVOY_PLAIN, HAPROXY, NGINX_IN_TURN
from load import at_rate
from processes import CpuClock
from proxies import SlowBackend
from scenario import read
from stats import in_turn

RATE = 1000
BACKENDS = 11
USUAL_MS, SLOW_MS = 167, 2000

# In flight are 167 requests, and in round robin 182 more at the slow one.
CONNECTIONS = 512

ARMS = ("evenkeel", HAPROXY, ENVOY_PLAIN, NGINX_IN_TURN)


def measure(tools, work, times, say):
    runs = []
    for number in range(times.rounds):
        names = in_turn(ARMS, number)
        for pair in names[:2], names[2:]:
            for seen in side_by_side(tools, work, times, pair):
                seen["round"] = number
                say(f"degraded {seen['arm']}: {seen['under_1s']:.3%} under 1 s, p50 {seen['p50_us'] / 1e3:.0f} ms, "
                    f"{seen['failed']} failed, {seen['extra']:.2%} extra, {seen['cpu_us']:.0f} µs")
                runs.append(seen)
    return {"rate_per_sec": RATE, "runs": runs}


def side_by_side(tools, work, times, names):
    with ExitStack() as stack:
        started = []
        for arm in names:
            name = f"degraded-{arm.split()[0]}"
            servers = [stack.enter_context(SlowBackend(tools, work, f"{name}-{n}", USUAL_MS)) for n in range(BACKENDS)]
            started.append((arm, servers, arms.start(stack, tools, work, arm, servers)))
        with ThreadPoolExecutor(len(started)) as pool:
            return list(pool.map(lambda one: degraded(tools, times, *one), started))


def degraded(tools, times, arm, servers, under_test):
    at_rate(tools, RATE, times.degraded_warm_s, under_test.port, connections=CONNECTIONS)
    time.sleep(USUAL_MS / 1e3)
    before = read(servers)
    clock = CpuClock(under_test.pid)
    events = faults.slow(servers[:1], times.degraded_s / 4, times.degraded_s * 3 / 4, SLOW_MS)
    with faults.Faults(servers, events):
        seen = at_rate(tools, RATE, times.degraded_s, under_test.port, connections=CONNECTIONS)
    seen.update(clock.per_request(seen["sent"]), arm=arm, at_backends=read(servers) - before)
    seen.update(extra=seen["at_backends"] / seen["sent"] - 1, under_1s=within(seen["histogram"], 1e6) / seen["sent"])
    return seen


def within(histogram, us):
    """How many took no longer; exact where `us` is a power of ten, since classes end there."""
    return sum(count for number, count in histogram.items() if 10 ** (int(number) / CLASSES_PER_DECADE) <= us * 1.001)


# Of openload's histogram.
CLASSES_PER_DECADE = 48
