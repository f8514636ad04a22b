"""Two of sixteen backends are sixteen times as slow as the others: what the caller sees of them.

500 GETs a second in an open loop; the fast ones answer after 2 ms. Arms without the slow ones (`fast ones alone`) say
what could be had at best, arms on sixteen fast ones (`uniform`) what watching for slowness costs where there is none.
"""

import scenario
from arms import HAPROXY, NGINX, envoy
from proxies import SlowBackend

RATE = 500
BACKENDS = 16
SLOW = 2
FAST_MS, SLOW_MS = 2, 32

ENVOY_SETTINGS = (envoy(4, 2), envoy(6, 4), envoy(10, 2))
UNIFORM, ALONE = ", uniform", ", fast ones alone"
ARMS = ("evenkeel", "evenkeel" + ALONE, "evenkeel" + UNIFORM, "evenkeel, balance scout" + UNIFORM,
        "evenkeel, all off" + UNIFORM, HAPROXY, NGINX)


def measure(tools, work, times, say):
    best, tries = scenario.tuned(tools, work, "slow", ENVOY_SETTINGS, loaded("", times, times.tuning_s), say)
    runs = scenario.rounds(tools, work, "slow", (*ARMS, best), lambda arm, _: loaded(arm, times, times.slow_s),
                           times.rounds, say)
    return {"rate_per_sec": RATE, "runs": runs, "tuning": tries, "tuned": best}


def loaded(arm, times, seconds):
    fast = BACKENDS if arm.endswith(UNIFORM) else BACKENDS - SLOW
    delays = [FAST_MS] * fast + [SLOW_MS] * (0 if arm.endswith((UNIFORM, ALONE)) else SLOW)
    return scenario.Scenario(
        RATE, times.slow_warm_s, seconds,
        lambda tools, work: [SlowBackend(tools, work, f"slow-{n}", delay) for n, delay in enumerate(delays)],
        proxy=arm.removesuffix(UNIFORM).removesuffix(ALONE))
