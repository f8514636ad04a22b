"""How the figures of `pauses` change with what they assume: where hedging helps, and where it does not.

One thing is changed at a time, the rest as in `pauses`: how long a pause is (backends run nine times as long, as there,
so that they are stopped a tenth of the time), how long a request takes, and how many backends pause at once. Short
runs, one for each arm: read the tendency, not the digits.
"""

import faults
import scenario
from arms import HAPROXY, envoy
from pauses import BACKENDS, MEAN_GAP_S, PAUSE_S, RATE, SEED
from pauses import backends as instant
from proxies import SlowBackend

GAP_FACTOR = MEAN_GAP_S / PAUSE_S

PAUSES_MS = (10, 30, 300, 1000, 2000)
SERVICES_MS = (0.2, 1, 5, 20, 50)
TOGETHER = (3, BACKENDS)


def measure(tools, work, times, say):
    cells, runs = list(all_cells(times)), []
    for number, (cell, service_ms, met) in enumerate(cells):
        # Tuned for the service: it would copy every request otherwise.
        arms = ("evenkeel", HAPROXY, envoy(2 if service_ms < 1 else 2 + 1.5 * service_ms, 4))
        for seen in scenario.rounds(tools, work, f"sweep {cell}:", arms, lambda *_, met=met: met, 1, say):
            runs.append({**seen, "cell": cell})
    return {"rate_per_sec": RATE, "runs": runs}


def all_cells(times):
    """What is changed, the service time in ms, and the scenario."""
    for ms in PAUSES_MS:
        yield f"pauses of {ms} ms", 0.2, cell(times, pause_s=ms / 1e3)
    for ms in SERVICES_MS:
        yield f"requests of {ms:g} ms", ms, cell(times, service_ms=ms)
    for count in TOGETHER:
        yield f"{count} of {BACKENDS} pause at once", 0.2, cell(times, together=count)


def cell(times, pause_s=PAUSE_S, service_ms=0.2, together=0):
    gap_s = GAP_FACTOR * pause_s

    def fault(servers, seconds):
        return (faults.pauses_together(servers[:together], SEED, seconds, pause_s, gap_s)
                + faults.pauses(servers[together:], SEED, seconds, pause_s, gap_s))

    def slow(tools, work):
        return [SlowBackend(tools, work, f"served-{n}", service_ms) for n in range(BACKENDS)]

    # nginx answers in about 0.2 ms, and a timer of the other is no finer than 1 ms.
    seconds = max(times.sweep_s, pause_s + gap_s)  # each is stopped about once
    return scenario.Scenario(RATE, times.pauses_warm_s, seconds,
                             instant if service_ms < 1 else slow, fault, settle_s=pause_s + 0.2)
