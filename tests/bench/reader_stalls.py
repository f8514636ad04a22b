"""A thousand callers that stall, 500 wholly and 500 at 10 kB/s, and what others see of it: `downloads` and `uploads`.

Each run is a fresh mesh: a quiet phase, then the callers, then the same again beside them, so that a ratio is taken
within seconds. Others are small GETs and POSTs through the same two hosts, to the stalled service and to another.
`direct` is the same without Evenkeel, on the load's one core: how much of a ratio is the harness's own.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

from processes import CpuClock
from reader_mesh import Callers, Pair, SIZE, forget_peak, in_sockets, machine_sockets, resident
from stats import in_turn
from tools import HERE

RATE = 200
GROUP = 500
SLOW_PER_S = 10_000

BIG = ["big-1", "big-2", "big-3", "big-4"]
OTHER = "other"

# An upload that is not read has no response's head: by default it would be over after 15 s.
POLICY = {"timeout": "10m"}

BEGIN_WITHIN_S = 60

# Name, version of the callers, how many services are stalled, whether by way of the mesh.
DOWNLOADS = [("HTTP/1.1, one service", 1, 1, True), ("HTTP/1.1, four services", 1, 4, True),
             ("HTTP/2, one service", 2, 1, True), ("HTTP/2, four services", 2, 4, True),
             ("direct, HTTP/1.1, one service", 1, 1, False)]
UPLOADS = [("HTTP/1.1, one service", 1, 1, True), ("HTTP/2, one service", 2, 1, True)]


def downloads(tools, work, times, say):
    return measure(tools, work, times, say, "downloads", DOWNLOADS, "GET")


def uploads(tools, work, times, say):
    return measure(tools, work, times, say, "uploads", UPLOADS, "POST")


def measure(tools, work, times, say, suite, arms, method):
    runs = []
    with before_others(say):
        for number in range(times.rounds):
            for name, version, services, meshed in in_turn(arms, number):
                run = {"arm": name, "round": number,
                       **stalled(tools, work, times, version, BIG[:services], method, meshed)}
                say(f"{suite}, {name}: {told(run)}")
                runs.append(run)
    return {"rate_per_sec": RATE, "callers": 2 * GROUP, "size": SIZE, "runs": runs}


@contextmanager
def before_others(say):
    """Hosts, applications and probes are real-time processes, so that what else runs on the machine waits for them;
    the callers are not, and come after them."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        say("not root: what else runs on the machine is part of the figures")
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def stalled(tools, work, times, version, services, method, meshed):
    with ExitStack() as stack:
        pair = stack.enter_context(Pair(tools, work, [*BIG, OTHER], POLICY))
        hosts = {"a": pair.a.pid, "b": pair.b.pid}
        where = pair.a.listeners if meshed else {name: app.address for name, app in pair.apps.items()}
        targets = {"same": where[services[0]], "other": where[OTHER]}
        probed(targets, times.stall_warm_s)
        quiet = probed(targets, times.stall_s)
        before = {name: resident(pid)["now_mib"] for name, pid in hosts.items()}
        kernel = machine_sockets()
        for pid in hosts.values():
            forget_peak(pid)
        groups = ([("stop", GROUP), ("slow", GROUP)] if method == "GET" else
                  [("stop/never", GROUP), ("slow/slow", GROUP)])
        callers = stack.enter_context(Callers(work, version, method, f"/bytes/{SIZE}",
                                              [where[name] for name in services], groups))
        begun_s = wait_until_begun(pair, callers, method)
        time.sleep(times.stall_settle_s)
        took = slowly_taken(pair, callers, method)
        start, clocks = time.monotonic(), {name: CpuClock(pid) for name, pid in hosts.items()}
        beside = probed(targets, times.stall_s)
        state = callers.state()
        lasted = time.monotonic() - start
        resident_then = {name: {"before_mib": before[name], **resident(pid)} for name, pid in hosts.items()}
        sockets = {name: in_sockets(tools, pid) for name, pid in hosts.items()}
        grown, slow = machine_sockets() - kernel, slowly_taken(pair, callers, method) - took
        under_way = begun(pair, callers, method)
        callers.process.end()
        time.sleep(times.stall_settle_s)
        for name, pid in hosts.items():
            resident_then[name]["after_mib"] = resident(pid)["now_mib"]
        return {"quiet": quiet, "beside": beside, "begun_s": begun_s,
                "ratios": {name: ratio(beside, quiet, name) for name in (*targets, None)},
                "slow_share": slow / lasted / GROUP / SLOW_PER_S,
                "cpu_share": {name: clock.per_request(1)["cpu_us"] / 1e6 / lasted for name, clock in clocks.items()},
                "state": state, "begun": under_way,
                "resident": resident_then, "in_sockets": sockets, "kernel_grown_mib": grown,
                "log_lines": {host.name: host.log().count("\n") for host in (pair.a, pair.b)},
                "log_tail": {host.name: host.log()[-1500:] for host in (pair.a, pair.b)}}


def probed(targets, seconds):
    argv = [sys.executable, os.path.join(HERE, "reader_probe.py"), str(RATE), str(seconds),
            *(f"{name}={target}" for name, target in targets.items())]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def ratio(beside, quiet, name, key="p99_us"):
    if name:
        beside, quiet = beside["by_name"][name], quiet["by_name"][name]
    return beside[key] / quiet[key] if quiet[key] and beside[key] else None


def begun(pair, callers, method):
    """How many are under way: heads of downloads, uploads that the application has been asked for."""
    if method == "GET":
        return callers.state()["heads"]
    return sum(count for app in pair.apps.values() for count in app.state()["began"].values())


def wait_until_begun(pair, callers, method):
    """Seconds until all are; what is not in time shows as fewer in the results."""
    start = time.monotonic()
    while (took := time.monotonic() - start) < BEGIN_WITHIN_S:
        if begun(pair, callers, method) >= callers.count:
            break
        time.sleep(0.2)
    return took


def slowly_taken(pair, callers, method):
    if method == "GET":
        return callers.state()["taken"]
    return sum(app.state()["slow_bytes"] for app in pair.apps.values())


def told(run):
    ratios = ", ".join(f"{name} × {ratio:.2f}" for name, ratio in run["ratios"].items() if name and ratio)
    memory = ", ".join(f"{name} {one['before_mib']:.0f} to {one['peak_mib']:.0f} MiB"
                       for name, one in run["resident"].items())
    return (f"{run['begun']} begun, p99 {run['quiet']['p99_us'] / 1e3:.2f} to {run['beside']['p99_us'] / 1e3:.2f} ms "
            f"({ratios}), {run['beside']['failed']} failed, slow ones got {run['slow_share']:.0%}, memory {memory}, "
            f"kernel +{run['kernel_grown_mib']:.0f} MiB")
