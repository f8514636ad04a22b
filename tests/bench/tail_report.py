"""Results of the tail's suites as Markdown: a table a suite, the targets and whether they are met; and their plots."""

import math
import os
from collections import Counter
from statistics import mean

import plot
import ramp
import slow
from arms import HAPROXY
from report import grid, heading, limit, ms, named, pause_targets, row, share, spread, tails
from stats import median, of_arm, over, ratios

TITLES = {
    "pauses": "Six backends, each paused 100 ms about once a second",
    "stops": "Sixteen backends, each stopped 200 ms every 5 s in turn",
    "slow": "Two of sixteen backends 16 times as slow",
    "degraded": "One of eleven backends goes from 167 ms to 2 s for half of the time",
    "together": "All backends slow together for a third of the time",
}

# "No worse" of one distribution against another that should be the same: what is less is noise.
NOISE = 1.02


def markdown(results):
    suites = results["suites"]
    parts = [heading(results)]
    parts += [f"### {title}\n\n{distributions(name, suites[name])}" for name, title in TITLES.items() if name in suites]
    if "poison" in suites:
        parts.append("### A tenant whose requests kill the backends that read them\n\n" + poison(suites["poison"]))
    if "ramp" in suites:
        parts.append("### A load that climbs past what the backends were given\n\n" + climbing(suites["ramp"]))
    if "sweep" in suites:
        parts.append("### Pauses again, other lengths, services and coincidences\n\n" + sweep(suites["sweep"]))
    return "\n\n".join([*parts, "### Targets\n\n" + grid(["target", "measured", ""], targets(suites))]) + "\n"


def distributions(name, suite):
    text = f"{suite['rate_per_sec']:,} requests/s, {suite['runs'][0]['sent']:,} a run; in brackets the worst run.\n\n"
    if name == "degraded":
        text += under_1s(suite["runs"])
    else:
        text += tails(suite["runs"])
    if "tuning" in suite:
        tries = ", ".join(f"{named(one['arm'])[6:]}: {ms(one['p99_us'])} / {ms(one['p999_us'])} at "
                          f"{share(one['extra'])}" for one in suite["tuning"])
        text += ("\n\nEnvoy's settings were tried once each, and that with the lowest p99.9 kept "
                 f"(p99 / p99.9 at extra requests): {tries}.")
    return text + f"\n\n![{TITLES[name]}: latency by percentile](tail-{name}.svg)"


def under_1s(runs):
    rows = []
    for arm in arms_of(runs):
        mine = of_arm(runs, arm)
        rows.append([named(arm), f"{over(mine, 'under_1s'):.3%} ({over(mine, 'under_1s', min):.3%})",
                     ms(over(mine, "p50_us")), ms(over(mine, "p99_us")), ms(over(mine, "p999_us")),
                     str(sum(run["failed"] for run in mine)), share(over(mine, "extra"))])
    return grid(["", "under 1 s", "p50", "p99", "p99.9", "failed", "extra requests"], rows)


def poison(suite):
    rows = []
    for arm in arms_of(suite["runs"]):
        mine = of_arm(suite["runs"], arm)
        rows.append([named(arm), ", ".join(str(run["dead"]) for run in mine),
                     ", ".join(str(run["hurt"]) for run in mine), ", ".join(str(run["hurt_once"]) for run in mine),
                     f"{mean(run['share'] for run in mine):.2%}"])
    return (f"{suite['tenants']:,} tenants, eight backends; each round another poison.\n\n"
            + grid(["", "backends dead", "tenants hurt", "once, not again", "share of tenants"], rows))


def climbing(suite):
    """p99 by step; what failed, if anything."""
    steps = [f"{step['of_allocation']:.2f}" for step in suite["runs"][0]["steps"]]
    rows = []
    for arm in arms_of(suite["runs"]):
        mine = of_arm(suite["runs"], arm)
        late = median([max(step["late_p99_us"] for step in run["steps"]) for run in mine])
        p99s = (median([run["steps"][n]["p99_us"] for run in mine]) for n in range(len(steps)))
        rows.append([named(arm), *(f"{p99 / 1e3:.0f} ms" for p99 in p99s), str(sum(run["failed"] for run in mine)),
                     share(over(mine, "extra")), ms(late)])
    return (f"The allocation is {suite['allocation_per_sec']:,.0f} requests/s; p99 at so many times that.\n\n"
            + grid(["", *steps, "failed", "extra requests", "load late by, p99, at most"], rows))


def sweep(suite):
    """p99 and p99.9 with the extra requests, peer beside peer."""
    rows = []
    for cell in dict.fromkeys(run["cell"] for run in suite["runs"]):
        runs = [run for run in suite["runs"] if run["cell"] == cell]
        rows.append([cell, *(f"{ms(run['p50_us'])} / {ms(run['p99_us'])} / {ms(run['p999_us'])}, {share(run['extra'])}"
                             + (f", {run['failed']} failed" if run["failed"] else "")
                             for run in (next(run for run in runs if run["arm"].startswith(name)) for name in
                                         ("evenkeel", HAPROXY, "envoy"))),
                     f"{against_best(runs, 'p99_us')} and {against_best(runs, 'p999_us')}"])
    return ("p50 / p99 / p99.9, extra requests; one short run each. Envoy's per-try timeout is 2 ms, for requests of "
            "1 ms and longer 2 ms beyond one and a half times their length; 4 retries.\n\n"
            + grid(["", "Evenkeel", named(HAPROXY), "Envoy", "Evenkeel / the best peer, p99 and p99.9"], rows))


def against_best(runs, key):
    """Over the best peer's: below 1 is better."""
    ours = next(run for run in runs if run["arm"] == "evenkeel")[key]
    return f"{ours / min(run[key] for run in runs if run['arm'] != 'evenkeel'):.2f}"


def targets(suites):
    rows = []
    for name, judge in (("pauses", of_pauses), ("stops", of_stops), ("slow", of_slow), ("degraded", of_degraded),
                        ("together", of_together), ("poison", of_poison), ("ramp", of_ramp)):
        if name in suites:
            rows += judge(suites[name])
    return rows


def of_pauses(suite):
    rows = pause_targets(suite["runs"], [suite["tuned"]])
    for arm in ("evenkeel, scout before each", "evenkeel, balance scout"):
        mine = of_arm(suite["runs"], arm)
        how = arm.split(", ")[1]
        rows += [limit(f"pauses, {how}: p99 ≤ 1.5 ms", mine, "p99_us", 1500, ms),
                 limit(f"pauses, {how}: p99.9 ≤ 5 ms", mine, "p999_us", 5000, ms)]
    return rows


def of_stops(suite):
    ours = of_arm(suite["runs"], "evenkeel")
    return [limit("stops: p99.9 ≤ 20 ms", ours, "p999_us", 20000, ms),
            limit("stops: ≤ 2 % extra", ours, "extra", 0.02, share)]


def of_slow(suite):
    runs = suite["runs"]
    rows = [ratio("two slow ones: p99 ≤ 1.1 × that of the fast ones alone",
                  ratios(runs, "p99_us", "evenkeel", "evenkeel" + slow.ALONE), 1.1)]
    for arm, how in (("evenkeel", "hedging, probation"), ("evenkeel, balance scout", "… and scouts")):
        rows.append(ratio(f"uniform load, {how}: CPU a request ≤ 1.03 × with all off",
                          ratios(runs, "cpu_us", arm + slow.UNIFORM, "evenkeel, all off" + slow.UNIFORM), 1.03))
    return rows


def of_degraded(suite):
    ours = of_arm(suite["runs"], "evenkeel")
    middle, lowest = over(ours, "under_1s"), over(ours, "under_1s", min)
    return [row("one goes to 2 s: ≥ 99.99 % under 1 s, median and worst run", f"{middle:.3%} and {lowest:.3%}",
                lowest >= 0.9999)]


def of_together(suite):
    return [limit("all slow together: copies ≤ 5 %", of_arm(suite["runs"], "evenkeel"), "extra", 0.05, share),
            ratio(f"all slow together: p99 no worse than without hedging (≤ {NOISE} ×)",
                  ratios(suite["runs"], "p99_us", "evenkeel", "evenkeel, no hedging"), NOISE)]


def of_poison(suite):
    """Shards are drawn by hashing: the share is 1/28 in the mean, and the draw is allowed three standard deviations."""
    ours = of_arm(suite["runs"], "evenkeel, shards of 2")
    expected = 1 / suite["shards"]
    allowed = expected + 3 * math.sqrt(expected * (1 - expected) / (suite["tenants"] * len(ours)))
    hurt = mean(run["share"] for run in ours)
    return [row(f"poison tenant: 1/28 of the tenants hurt, within the draw's three deviations (≤ {allowed:.2%})",
                f"{hurt:.2%}", hurt <= allowed),
            row("poison tenant: no other tenant hurt after one retry", str(sum(run["hurt_once"] for run in ours)),
                all(run["hurt_once"] == 0 and run["dead"] <= 2 for run in ours))]


def of_ramp(suite):
    """Beside the best peer of the round, at the step that is judged."""
    def p99(run):
        """Of what was answered: who fails has none."""
        step = run["steps"][ramp.JUDGED]
        return math.inf if step["failed"] else step["p99_us"]

    rows = []
    for arm in ramp.OURS:
        mine = of_arm(suite["runs"], arm)
        failed = sum(run["failed"] for run in mine)
        rows.append(row(f"load ramp, {named(arm)}: no errors", f"{failed} failed", failed == 0))
        best = [p99(run) / min(p99(peer) for peer in suite["runs"]
                               if peer["round"] == run["round"] and peer["arm"] in ramp.PEERS) for run in mine]
        rows.append(ratio(f"… p99 ≤ 1/3 of the best peer's at {ramp.STEPS[ramp.JUDGED]:.2f} of the allocation", best, 1 / 3))
    return rows


def ratio(target, values, most):
    """By the median of the rounds."""
    return row(target, spread(values), median(values) <= most)


def arms_of(runs):
    return dict.fromkeys(run["arm"] for run in runs)


def write_plots(suites, directory):
    """The rounds of an arm are one distribution."""
    for name, title in TITLES.items():
        if name not in suites:
            continue
        series = []
        for arm in arms_of(suites[name]["runs"]):
            mine = of_arm(suites[name]["runs"], arm)
            together = sum((Counter(run["histogram"]) for run in mine), Counter())
            series.append((named(arm), sum(run["sent"] for run in mine), together))
        with open(os.path.join(directory, f"tail-{name}.svg"), "w") as file:
            file.write(plot.percentiles(title, series))
