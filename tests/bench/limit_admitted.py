"""What passes of twice the limit: one minute, counted at the backend, in windows that may begin at any request.

An open loop, so that a refusal does not slow the load down. Every proxy has a limit of 500 a second and, where it has one, a
burst of a tenth.
"""

from contextlib import ExitStack

from limits import busiest, proxy
from load import at_rate
from proxies import Backend

RATE, BURST = 500, 50

ARMS = ("evenkeel, one rule", "envoy, local_ratelimit", "haproxy, gpc0_rate", "haproxy, http_req_rate")


def measure(tools, work, times, say):
    runs = []
    for arm in ARMS:
        run = one(tools, work, times, arm)
        say(f"admitted {arm}: {run['of_limit']:.1%} of the limit, busiest second {run['busiest']}")
        runs.append(run)
    return {"rate_per_sec": RATE, "burst": BURST, "seconds": times.admitted_s, "runs": runs}


def one(tools, work, times, arm):
    with ExitStack() as stack:
        server = stack.enter_context(Backend(tools, work, "limited", counted=True))
        under_test = stack.enter_context(proxy(tools, work, arm, [server], RATE, BURST))
        # Where what is refused counts too, nothing passes of twice the limit.
        ask = {"connections": 16, "all_may_fail": True}
        at_rate(tools, 2 * RATE, times.warm_s, under_test.port, **ask)
        before = server.requests()
        seen = at_rate(tools, 2 * RATE, times.admitted_s, under_test.port, **ask)
        came = [at for at, _ in server.arrivals()[before:]]
        seen.pop("histogram")
        refused = seen["errors"].pop("status 429", 0)
        return {**seen, "arm": arm, "refused": refused, "came": len(came),
                "of_limit": len(came) / (RATE * times.admitted_s), "busiest": busiest(came)}
