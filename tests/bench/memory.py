"""Resident memory of processes that have nothing to do, some time after their start.

One Evenkeel alone, and four that are a mesh with one service each; HAProxy and Envoy beside them.
"""

import time
from contextlib import ExitStack

from processes import resident_mib
from proxies import Backend, Envoy, Evenkeel, HAProxy

HOSTS = 4


def measure(tools, work, times, say):
    with ExitStack() as stack:
        server = stack.enter_context(Backend(tools, work, "backend-0"))
        idle = {
            "evenkeel alone": stack.enter_context(Evenkeel(tools, work, "alone")),
            "haproxy": stack.enter_context(HAProxy(tools, work, [server], "random(2)")),
            "envoy": stack.enter_context(Envoy(tools, work, [server], "0.002s", 4)),
        }
        first = None
        for number in range(1, HOSTS + 1):
            join = [first.gossip] if first else []
            host = stack.enter_context(
                Evenkeel(tools, work, f"host-{number}", offers=[server], join=join, address=f"127.0.0.{number}"))
            first = first or host
            idle[f"evenkeel, host {number} of {HOSTS}"] = host
        for name, host in idle.items():
            if " of " in name:
                host.wait_for_members(HOSTS)
                host.wait_for_instances(HOSTS)
        say(f"memory: {times.idle_s} s of idling")
        time.sleep(times.idle_s)
        runs = [{"arm": name, "after_s": times.idle_s, **resident_mib(one.process.pid)}
                for name, one in idle.items()]
    for run in runs:
        say(f"memory {run['arm']}: {run['resident_mib']:.1f} MiB")
    return {"runs": runs}
