"""All eight backends become slow together, from 5 to 100 ms for a while: copies can win nothing and must not add to it.

300 GETs a second in an open loop. Beside Evenkeel with hedging its own self without: the tail must be no worse, and the
copies stay within the budget.
"""

import faults
import scenario
from proxies import SlowBackend

RATE = 300
BACKENDS = 8
USUAL_MS, SLOW_MS = 5, 100

ARMS = ("evenkeel", "evenkeel, no hedging")


def measure(tools, work, times, say):
    # The middle third of what is measured.
    at, until = (times.together_warm_s + times.together_s * third / 3 for third in (1, 2))
    met = scenario.Scenario(
        RATE, times.together_warm_s, times.together_s, backends, connections=256,
        fault=lambda servers, _: faults.slow(servers, at, until, SLOW_MS))
    return {"rate_per_sec": RATE,
            "runs": scenario.rounds(tools, work, "together", ARMS, lambda *_: met, times.rounds, say)}


def backends(tools, work):
    return [SlowBackend(tools, work, f"together-{n}", USUAL_MS) for n in range(BACKENDS)]
