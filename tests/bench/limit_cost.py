"""What one rule costs a request: each proxy at saturation with a limit that never refuses, and without.

The load, the backends and the turns are those of `cost`. Evenkeel's host is alone, so it owns all of the limit and decides as every host does
about what it owns; what a lease adds to a decision is in `core`.
"""

from contextlib import ExitStack

from cost import backends
from limits import NEVER, proxy
from load import saturate
from processes import CpuClock
from stats import in_turn

# Each with its rule, and the same without.
PAIRS = {"evenkeel, one rule": "evenkeel", "haproxy, http_req_rate": "haproxy", "envoy, local_ratelimit": "envoy"}


def measure(tools, work, times, say):
    runs = []
    arms = tuple(arm for pair in PAIRS.items() for arm in pair)
    with ExitStack() as stack:
        servers = backends(stack, tools, work)
        for number in range(times.rounds):
            for arm in in_turn(arms, number):
                with proxy(tools, work, arm, servers, NEVER, NEVER // 10) as under_test:
                    saturate(tools, under_test.port, times.warm_s)
                    clock = CpuClock(under_test.pid)
                    run = saturate(tools, under_test.port, times.cost_s)
                    run.update(clock.per_request(run["requests"]), arm=arm, round=number)
                    if run["failed"]:
                        raise SystemExit(f"bench: {arm}: {run['failed']} requests were refused or failed")
                say(f"cost {arm}: {run['cpu_us']:.2f} µs, {run['per_sec']:.0f}/s")
                runs.append(run)
    return {"runs": runs}
