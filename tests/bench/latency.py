"""Added latency and processor time for a request at one fixed rate, half of what HAProxy reaches at saturation.

The open loop goes to the three nginx directly, through Evenkeel and through HAProxy in turn; what a proxy adds
is its percentile less that of the direct run of the same round.
"""

from contextlib import ExitStack

from cost import ARMS, backends, proxy
from load import at_rate, saturate
from processes import CpuClock
from stats import in_turn

DIRECT = "direct"


def measure(tools, work, times, say, rate):
    runs = []
    with ExitStack() as stack:
        servers = backends(stack, tools, work)
        rate = rate or find_rate(tools, work, times, servers)
        for number in range(times.rounds):
            for arm in in_turn((DIRECT, *ARMS), number):
                run = one(tools, work, times, servers, arm, rate)
                run.update(arm=arm, round=number)
                say(f"latency {arm} at {rate:g}/s: p50 {run['p50_us']:.0f} µs, p99 {run['p99_us']:.0f} µs")
                runs.append(run)
    return {"rate_per_sec": rate, "runs": added(runs)}


def find_rate(tools, work, times, servers):
    with proxy(tools, work, "haproxy", servers) as peer:
        saturate(tools, peer.port, times.warm_s)
        return half(saturate(tools, peer.port, times.cost_s)["per_sec"])


def half(per_sec):
    return max(int(round(per_sec / 2, -2)), 100)


def one(tools, work, times, servers, arm, rate):
    if arm == DIRECT:
        ports = [server.port for server in servers]
        at_rate(tools, rate, times.warm_s, *ports)
        return at_rate(tools, rate, times.latency_s, *ports)
    with proxy(tools, work, arm, servers) as under_test:
        at_rate(tools, rate, times.warm_s, under_test.port)
        clock = CpuClock(under_test.process.pid)
        run = at_rate(tools, rate, times.latency_s, under_test.port)
        run.update(clock.per_request(run["sent"]))
        return run


def added(runs):
    direct = {run["round"]: run for run in runs if run["arm"] == DIRECT}
    for run in runs:
        if run["arm"] != DIRECT:
            for key in ("p50_us", "p99_us"):
                run[f"added_{key}"] = run[key] - direct[run["round"]][key]
    return runs
