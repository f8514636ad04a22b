"""The two loads: wrk asks as fast as it is answered, openload at a fixed rate whatever the answers do."""

import contextlib
import json
import os
import re
import subprocess

CONNECTIONS = 64

# After its time: the last requests, each of which fails after 5 s, one after the other on a connection.
LOAD_ENDS_WITHIN_S = 60


def saturate(tools, port, seconds):
    """A closed loop: 64 connections, each asks again as soon as it has its answer."""
    argv = wrk(tools, port, seconds)
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    bad = sum(int(count) for count in re.findall(r"Non-2xx or 3xx responses: (\d+)", said))
    for errors in re.findall(r"Socket errors: (.*)", said):
        bad += sum(int(count) for count in re.findall(r"\d+", errors))
    requests = int(re.search(r"(\d+) requests in", said)[1])
    per_sec = float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])
    return {"command": shown(argv), "requests": requests, "per_sec": per_sec, "failed": bad}


@contextlib.contextmanager
def saturating(tools, port):
    """The same load for as long as the block lasts."""
    child = subprocess.Popen(wrk(tools, port, 3600), stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        child.kill()
        child.wait()


def at_rate(tools, rate, seconds, *ports, connections=CONNECTIONS, all_may_fail=False):
    """An open loop over so many connections, spread over the ports."""
    argv = [tools.openload, f"{rate:g}", f"{seconds:g}", connections, *(f"127.0.0.1:{port}" for port in ports)]
    argv = [str(arg) for arg in argv]
    said = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=seconds + LOAD_ENDS_WITHIN_S).stdout
    seen = json.loads(said)
    if not seen["ok"] and not all_may_fail:
        raise SystemExit(f"bench: not one good answer at port {ports[0]}: {seen['errors']}")
    return {"command": shown(argv), **seen}


def wrk(tools, port, seconds):
    return [tools.wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", f"http://127.0.0.1:{port}/"]


def shown(argv):
    """A command line without the directory of the program."""
    return " ".join([os.path.basename(argv[0]), *argv[1:]])
