"""Six backends that are stopped 100 ms about once a second, each on its own: what the caller sees of it.

200 GETs a second in an open loop. All arms of a round get the same pauses (SIGSTOP to nginx's whole process group)
at the same moments, drawn from a seed; the next round has others. Extra requests are the lines in the backends' logs
beyond the requests that were sent.
"""

import faults
import scenario
from arms import CONTROL, HAPROXY, NGINX, envoy
from proxies import Backend

RATE = 200
BACKENDS = 6
PAUSE_S = 0.1
MEAN_GAP_S = 0.9
SEED = 20130213

ENVOY_ARMS = (envoy(2, 4), envoy(1, 2))
ARMS = ("evenkeel", "evenkeel, no hedging", "evenkeel, two hosts", HAPROXY, *ENVOY_ARMS)


# Envoy's per-try timeouts and numbers of retries, of which the best is kept where it is tuned.
ENVOY_SETTINGS = (envoy(1, 2), envoy(1, 4), envoy(2, 2), envoy(2, 4), envoy(3, 4))

TAIL_ARMS = ("evenkeel", CONTROL, "evenkeel, scout before each", "evenkeel, balance scout", "evenkeel, two hosts",
             HAPROXY, NGINX)


def measure(tools, work, times, say):
    """The arms of `make bench`."""
    runs = scenario.rounds(tools, work, "pauses", ARMS, lambda _, number: paused(times, number), times.rounds, say)
    return {"rate_per_sec": RATE, "runs": runs}


def measure_tail(tools, work, times, say):
    """Those of `make bench-tail`: every peer, Envoy at its best, the scouts, and the same load without pauses."""
    short = paused(times, times.rounds, times.tuning_s)  # pauses that no round has
    best, tries = scenario.tuned(tools, work, "pauses", ENVOY_SETTINGS, short, say)
    runs = scenario.rounds(tools, work, "pauses", (*TAIL_ARMS, best), lambda _, number: paused(times, number),
                           times.rounds, say)
    return {"rate_per_sec": RATE, "runs": runs, "tuning": tries, "tuned": best}


def paused(times, number, seconds=None):
    return scenario.Scenario(
        RATE, times.pauses_warm_s, seconds or times.pauses_s, backends, settle_s=2 * PAUSE_S,
        fault=lambda servers, seconds: faults.pauses(servers, SEED + number, seconds, PAUSE_S, MEAN_GAP_S))


def backends(tools, work):
    return [Backend(tools, work, f"paused-{n}", counted=True) for n in range(BACKENDS)]
