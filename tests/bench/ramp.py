"""A load that climbs from 0.75 to 1.74 times what sixteen backends were given, while others use their machines.

After the load ramp of Prequal (NSDI 2024, 5.1): a replica may use what its machine has to spare, and does so beyond its
allocation; an antagonist on the machine takes that away. Here four of the sixteen have one: they serve what they were
given, 50 a second, eight at a time, and take 160 ms for each; the others up to 125, in 64 ms. So there is room for 2.1
times the allocation, for those who find it.

Four proxies share the load, as clients in a mesh do: none sees what the others have in flight. (For one alone, who sees
everything, the fewest in flight is as good as can be.) An open loop; each step of the ramp is a run of its own.
"""

import os
from contextlib import ExitStack
from functools import partial

import arms
from arms import ENVOY_PLAIN, HAPROXY, NGINX, NGINX_IN_TURN
from load import at_rate
from proxies import Evenkeel, SlowBackend
from scenario import read
from stats import in_turn

BACKENDS = 16
PLACES = 8
ALONE_MS, BESIDE_MS = 64, 160
ANTAGONISTS = 4
ALLOCATION_PER_SEC = BACKENDS * PLACES * 1000 / BESIDE_MS
CLIENTS = 4

# Of the paper's nine; it compares at 1.27.
STEPS = tuple(0.75 * (10 / 9) ** n for n in (0, 3, 5, 7, 8))
JUDGED = 2

# Each step begins with empty queues; with fewer connections than this the load itself would wait.
CONNECTIONS = 512

# The backends are another host's, whose scouts answer for all that they have to do.
MESH = "evenkeel, two hosts, balance scout"
OURS = ("evenkeel", "evenkeel, no hedging", "evenkeel, balance scout", MESH)
PEERS = (HAPROXY, NGINX, ENVOY_PLAIN, NGINX_IN_TURN)


def measure(tools, work, times, say):
    runs = []
    for number in range(times.rounds):
        for arm in in_turn(OURS + PEERS, number):
            seen = climb(tools, work, times, arm)
            say(f"ramp {arm}: p99 {seen['steps'][JUDGED]['p99_us'] / 1e3:.0f} ms at {STEPS[JUDGED]:.2f} of the "
                f"allocation, {seen['failed']} failed, {seen['extra']:.2%} extra")
            runs.append({"arm": arm, "round": number, **seen})
    return {"allocation_per_sec": ALLOCATION_PER_SEC, "runs": runs}


def climb(tools, work, times, arm):
    with ExitStack() as stack:
        servers = [stack.enter_context(SlowBackend(tools, work, f"ramp-{n}", BESIDE_MS if n < ANTAGONISTS else ALONE_MS, PLACES))
                   for n in range(BACKENDS)]
        ports = [proxy.port for proxy in clients(stack, tools, work, arm, servers)]
        load = partial(at_rate, tools, connections=CONNECTIONS)
        load(STEPS[0] * ALLOCATION_PER_SEC, times.ramp_warm_s, *ports)
        before = read(servers)
        steps = [{"of_allocation": step, **load(step * ALLOCATION_PER_SEC, times.ramp_step_s, *ports)} for step in STEPS]
        sent = sum(step["sent"] for step in steps)
        return {"steps": steps, "failed": sum(step["failed"] for step in steps),
                "extra": (read(servers) - before) / sent - 1}


def clients(stack, tools, work, arm, servers):
    if arm != MESH:
        return [arms.start(stack, tools, os.path.join(work, f"client-{n}"), arm, servers) for n in range(CLIENTS)]
    host = stack.enter_context(Evenkeel(tools, work, "host", offers=servers, address="127.0.0.2"))
    each = [stack.enter_context(Evenkeel(tools, work, f"client-of-host-{n}", join=[host.gossip],
                                         policy=arms.POLICIES["evenkeel, balance scout"], address=f"127.0.0.{3 + n}"))
            for n in range(CLIENTS)]
    for client in each:
        client.wait_for_instances(len(servers))
    return each
