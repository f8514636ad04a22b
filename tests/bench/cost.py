"""Processor time for a request at saturation, and the system calls of one.

HTTP/1.1 keep-alive, 64 connections, 64-byte bodies, three nginx. Evenkeel and HAProxy take turns, each started
anew and warmed up in every round; both balance by two random choices. Evenkeel has all its defaults.
"""

import os
import re
import signal
import time
from contextlib import ExitStack

from load import saturate, saturating
from processes import LOAD_CORE, CpuClock, Process, traced
from proxies import Backend, Evenkeel, HAProxy
from stats import in_turn

ARMS = ("evenkeel", "haproxy")
BACKENDS = 3


def backends(stack, tools, work, counted=False):
    return [stack.enter_context(Backend(tools, work, f"backend-{n}", counted)) for n in range(BACKENDS)]


def proxy(tools, work, arm, servers):
    if arm == "evenkeel":
        return Evenkeel(tools, work, "evenkeel", backends=servers)
    return HAProxy(tools, work, servers, "random(2)")


def measure(tools, work, times, say):
    runs, syscalls = [], {}
    with ExitStack() as stack:
        servers = backends(stack, tools, work)
        for number in range(times.rounds):
            for arm in in_turn(ARMS, number):
                with proxy(tools, work, arm, servers) as under_test:
                    saturate(tools, under_test.port, times.warm_s)
                    clock = CpuClock(under_test.process.pid)
                    run = saturate(tools, under_test.port, times.cost_s)
                    run.update(clock.per_request(run["requests"]), arm=arm, round=number)
                say(f"cost {arm}: {run['cpu_us']:.2f} µs, {run['per_sec']:.0f}/s")
                runs.append(run)
    with ExitStack() as stack:
        servers = backends(stack, tools, work, counted=True)
        for arm in ARMS:
            with proxy(tools, work, arm, servers) as under_test:
                syscalls[arm] = count_syscalls(tools, work, under_test, servers, times)
            say(f"cost {arm}: {syscalls[arm]['total']:.2f} system calls a request")
    return {"runs": runs, "syscalls_per_request": syscalls}


def count_syscalls(tools, work, under_test, servers, times):
    """By strace, attached once the load runs, so that opening connections does not count.

    It slows the proxy, but the work still comes in batches of 64 connections. The backends' logs say for how many
    requests the calls were made.
    """
    summary = os.path.join(work, "strace")
    pid = under_test.process.pid
    with saturating(tools, under_test.port):
        time.sleep(times.warm_s)
        tracer = Process([tools.strace, "-c", "-f", "-o", summary, "-p", pid], LOAD_CORE, summary + ".log")
        try:
            tracer.wait_until(lambda: traced(pid), "it cannot trace: is ptrace allowed here?")
            before = sum(server.requests() for server in servers)
            time.sleep(times.trace_s)
            requests = sum(server.requests() for server in servers) - before
            tracer.signal(signal.SIGINT)
            tracer.child.wait()
        finally:
            tracer.end()
    with open(summary) as file:
        rows = re.findall(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", file.read(), re.M)
    calls = {name: int(count) / max(requests, 1) for count, name in rows if name != "total"}
    return {"total": sum(calls.values()), "requests": requests,
            "calls": {name: count for name, count in calls.items() if count >= 0.005}}
