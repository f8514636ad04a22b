"""One run of one arm: backends and proxy started anew, a fault, an open loop, the requests counted at the backends.

A warm-up under the same fault comes first and is counted nowhere: caches, connections and estimates are
those of a proxy that has been at work.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Callable

import arms
from load import CONNECTIONS, at_rate
from processes import CpuClock
from proxies import Evenkeel
from faults import Faults
from stats import in_turn


@dataclass
class Scenario:
    """`backends(tools, work)` gives servers to be entered; `fault(servers, seconds)` what happens to them."""

    rate: float
    warm_s: float
    seconds: float
    backends: Callable
    fault: Callable = lambda servers, seconds: []
    # A request that a stopped backend was sent is read when its pause ends.
    settle_s: float = 0.2
    connections: int = CONNECTIONS
    # What to start, when the arm's name says more than that.
    proxy: str = ""


def run(tools, work, scenario, arm):
    with ExitStack() as stack:
        servers = [stack.enter_context(server) for server in scenario.backends(tools, work)]
        under_test = arms.start(stack, tools, work, scenario.proxy or arm, servers)
        seconds = scenario.warm_s + scenario.seconds + 1
        with Faults(servers, scenario.fault(servers, seconds) if arm != arms.CONTROL else []) as faults:
            at_rate(tools, scenario.rate, scenario.warm_s, under_test.port, connections=scenario.connections)
            time.sleep(scenario.settle_s)
            before = read(servers)
            clock = CpuClock(under_test.pid)
            seen = at_rate(tools, scenario.rate, scenario.seconds, under_test.port,
                           connections=scenario.connections)
            seen.update(clock.per_request(seen["sent"]))
        time.sleep(scenario.settle_s)
        seen.update(at_backends=read(servers) - before, faults=faults.count, fault_late_ms=faults.late_s * 1e3)
        seen["extra"] = seen["at_backends"] / seen["sent"] - 1
        if isinstance(under_test, Evenkeel):
            seen["hedges_since_start"] = under_test.metric("evenkeel_hedges_total")
        return seen


def rounds(tools, work, suite, names, scenario_of, count, say):
    """All arms take turns; `scenario_of(arm, number)` is what this arm meets in this round."""
    runs = []
    for number in range(count):
        for arm in in_turn(names, number):
            seen = run(tools, work, scenario_of(arm, number), arm)
            seen.update(arm=arm, round=number)
            say(f"{suite} {arm}: {told(seen)}")
            runs.append(seen)
    return runs


def tuned(tools, work, suite, settings, scenario, say):
    """The setting of Envoy's with the lowest p99.9, each tried once; and all the tries."""
    tries = []
    for arm in settings:
        seen = run(tools, work, scenario, arm)
        say(f"{suite}, tuning {arm}: {told(seen)}")
        tries.append({**seen, "arm": arm})
    return min(tries, key=lambda seen: seen["p999_us"])["arm"], tries


def told(seen):
    return (f"p50 {seen['p50_us'] / 1e3:.2f} ms, p99 {seen['p99_us'] / 1e3:.2f} ms, "
            f"p99.9 {seen['p999_us'] / 1e3:.2f} ms, {seen['failed']} failed, {seen['extra']:.2%} extra")


def read(servers):
    return sum(server.requests() for server in servers)
