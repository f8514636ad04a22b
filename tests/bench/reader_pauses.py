"""Readers that pause and peers that die: `pauses` and `gone`.

`pauses`: a download of 64 MiB that nobody reads for some minutes after its half, over both versions, through the mesh
and of an application on the caller's own host, all at the same time; and callers that are stopped whole (SIGSTOP) for
so long, whose kernel acknowledges while they do not. Each must get the rest.

`gone`: how long until what waits on a dead peer ends. `frozen`: host B is stopped, its kernel lives. `unplugged`: host B
is in a network namespace whose link goes down, so not even its kernel answers.
"""

import base64
import os
import secrets
import signal
import subprocess
import time
from contextlib import ExitStack

from reader_mesh import App, Callers, Host, MIB, Pair, SIZE

REST_WITHIN_S = 60
GONE_WITHIN_S = 60
# An upload that waits is over after 15 s by default, whatever became of the host.
POLICY = {"timeout": "10m"}
# Whoever does not read is not told; it is shown and is no part of the target.
UNREAD = "download that its caller does not read"
# What an upload has to have sent before its peer dies.
UNDER_WAY = 50_000


def pauses(tools, work, times, say):
    runs = []
    with ExitStack() as stack:
        pair = stack.enter_context(Pair(tools, work, ["big-1"]))
        started = []
        for way, host in (("mesh", pair.a), ("same host", pair.b)):
            for version in (1, 2):
                for kind in ("unread", "stopped"):
                    mode = f"pause:{times.pause_s}" if kind == "unread" else "slow"
                    callers = stack.enter_context(Callers(work, version, "GET", f"/bytes/{SIZE}",
                                                          [host.listeners["big-1"]], [(mode, 1)]))
                    started.append(((way, version, kind), callers))
        time.sleep(2)
        stopped = [callers for (_, _, kind), callers in started if kind == "stopped"]
        for callers in stopped:
            callers.process.signal(signal.SIGSTOP)
        time.sleep(times.pause_s + 1)
        woken = time.monotonic()
        for callers in stopped:
            callers.process.signal(signal.SIGCONT)
        deadline = time.monotonic() + REST_WITHIN_S
        for (way, version, kind), callers in started:
            while True:
                one = callers.state()["each"][0]
                # A stopped one goes on at 10 kB/s: it lives if it has got more than could have waited for it.
                alive = kind == "stopped" and one["error"] is None and time.monotonic() > woken + 15
                if one["ended_at"] or alive or time.monotonic() > deadline:
                    break
                time.sleep(0.2)
            whole = one["received"] == SIZE and one["error"] is None
            runs.append({"way": way, "version": version, "kind": kind, "pause_s": times.pause_s,
                         "received": one["received"], "error": one["error"],
                         "cut_after_s": one["ended_at"] and one["error"] and one["ended_at"] - woken + times.pause_s,
                         "good": whole if kind == "unread" else one["error"] is None})
            say(f"pauses, {way}, HTTP/{version}, {kind}: {one['received'] / MIB:.1f} MiB, {one['error'] or 'fine'}")
        logs = {host.name: host.log()[-3000:] for host in (pair.a, pair.b)}
    return {"pause_s": times.pause_s, "runs": runs, "log_tail": logs}


def gone(tools, work, times, say):
    runs = []
    for name, killed in (("frozen", frozen), ("unplugged", unplugged)):
        for run in killed(tools, work):
            runs.append({"arm": name, **run})
            say(f"gone, {name}: {run['what']} ended after {shown(run['ended_s'])}, {run['error']}")
    return {"runs": runs, "within_s": GONE_WITHIN_S}


def shown(seconds):
    return "never" if seconds is None else f"{seconds:.1f} s"


def frozen(tools, work):
    with ExitStack() as stack:
        pair = stack.enter_context(Pair(tools, work, ["big-1"], POLICY))
        waiting = everybody(stack, work, pair.a.listeners["big-1"])
        return watched(waiting, tools, pair.a, pair.b, lambda: pair.b.process.signal(signal.SIGSTOP))


def unplugged(tools, work):
    """Two namespaces and a cable between them."""
    with ExitStack() as stack:
        spaces = [f"evenkeel-{os.getpid()}-{letter}" for letter in "ab"]
        for space in spaces:
            ip(tools, "netns", "add", space)
            stack.callback(ip, tools, "netns", "del", space)
            ip(tools, "-n", space, "link", "set", "lo", "up")
        ip(tools, "link", "add", "cable", "netns", spaces[0], "type", "veth", "peer", "cable", "netns", spaces[1])
        for number, space in enumerate(spaces, 1):
            ip(tools, "-n", space, "addr", "add", f"10.99.0.{number}/24", "dev", "cable")
            ip(tools, "-n", space, "link", "set", "cable", "up")
        a_in, b_in = (("ip", "netns", "exec", space) for space in spaces)
        keys = [base64.b64encode(secrets.token_bytes(32)).decode()]
        app = stack.enter_context(App(work, "app-far", "10.99.0.2", prefix=b_in))
        b = stack.enter_context(Host(tools, work, "far-b", "10.99.0.2", offers={"big-1": app}, keys=keys, prefix=b_in))
        a = stack.enter_context(Host(tools, work, "far-a", "10.99.0.1", wants=["big-1"], join=[b.gossip], keys=keys,
                                     policy=POLICY, prefix=a_in))
        a.wait_for(["big-1"])
        waiting = everybody(stack, work, a.listeners["big-1"], a_in)
        # B's end of the cable goes down, and with it the carrier of A's: the route stays, and nothing answers.
        return watched(waiting, tools, a, b, lambda: ip(tools, "-n", spaces[1], "link", "set", "cable", "down"))


def everybody(stack, work, target, prefix=()):
    """What waits on B: downloads that are read and not, uploads that are taken and not."""
    waiting = []
    for version in (1, 2):
        for what, method, mode in (("download that comes at 10 kB/s", "GET", f"all/drip/{SIZE}"),
                                   (UNREAD, "GET", f"stop/bytes/{SIZE}"),
                                   ("upload, not taken", "POST", "stop/never"),
                                   ("upload, taken at 10 kB/s", "POST", "slow/slow")):
            callers = stack.enter_context(Callers(work, version, method, None, [target], [(mode, 1)], prefix=prefix))
            waiting.append((f"HTTP/{version} {what}", callers))
    return waiting


def watched(waiting, tools, a, b, kill):
    deadline = time.monotonic() + 20
    while not all(one["received"] or one["sent"] > UNDER_WAY for one in states(waiting)):
        if time.monotonic() > deadline:
            raise SystemExit("bench: what waits on B does not begin")
        time.sleep(0.2)
    time.sleep(3)
    kill()
    killed, closed_s = time.monotonic(), None
    while time.monotonic() < killed + GONE_WITHIN_S:
        if closed_s is None and not connections(tools, a, b):
            closed_s = time.monotonic() - killed
        if closed_s is not None and all(ended(waiting)):
            break
        time.sleep(0.25)
    runs = [{"what": what, "error": one["error"], "received": one["received"], "sent": one["sent"],
             "status": one["status"], "ended_s": one["ended_at"] and one["ended_at"] - killed}
            for (what, _), one in zip(waiting, states(waiting))]
    return [*runs, {"what": "A's last connection to B", "error": None, "ended_s": closed_s}]


def states(waiting):
    return [callers.state()["each"][0] for _, callers in waiting]


def ended(waiting):
    return [one["ended_at"] is not None for one in states(waiting)]


def connections(tools, a, b):
    """Of A to B's mesh port, whatever their state, as long as a process holds them."""
    address, _, port = b.data.rpartition(":")
    said = subprocess.run([*a.prefix, tools.ss, "-tnpHO", "dst", address, "dport", "=", f":{port}"], check=True,
                          capture_output=True, text=True).stdout
    return sum("pid=" in line for line in said.splitlines())


def ip(tools, *args):
    subprocess.run([tools.ip, *args], check=True)
