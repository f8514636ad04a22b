"""Sixteen backends, each stopped 200 ms every 5 s, one after the other: some backend is stopped two thirds of the time.

2,000 GETs a second in an open loop, ten times the rate of `pauses`: each stop meets many requests at once.
"""

import faults
import scenario
from arms import CONTROL, HAPROXY, NGINX, envoy
from proxies import Backend

RATE = 2000
BACKENDS = 16
PAUSE_S = 0.2
EVERY_S = 5

ENVOY_SETTINGS = (envoy(1, 2), envoy(2, 2), envoy(2, 4), envoy(5, 2))
ARMS = ("evenkeel", CONTROL, HAPROXY, NGINX)


def measure(tools, work, times, say):
    best, tries = scenario.tuned(tools, work, "stops", ENVOY_SETTINGS, stopped(times, times.tuning_s), say)
    runs = scenario.rounds(tools, work, "stops", (*ARMS, best), lambda *_: stopped(times, times.stops_s),
                           times.rounds, say)
    return {"rate_per_sec": RATE, "runs": runs, "tuning": tries, "tuned": best}


def stopped(times, seconds):
    return scenario.Scenario(
        RATE, times.stops_warm_s, seconds, backends, settle_s=2 * PAUSE_S,
        fault=lambda servers, seconds: faults.staggered(servers, seconds, PAUSE_S, EVERY_S))


def backends(tools, work):
    return [Backend(tools, work, f"stopped-{n}", counted=True) for n in range(BACKENDS)]
