#!/usr/bin/env python3
"""`make bench-tail`: the tail of the latency under pauses, slowness and poison, beside tuned peers; an hour.

The harness of `make bench` with other suites: the same surroundings, options and results. Every wait has an end, and
whatever ends this takes down what it started.
"""

import os
import sys
from types import SimpleNamespace

import degraded
import loss
import loss_report
import pauses
import poison
import ramp
import report
import session
import slow
import stops
import sweep
import tail_report
import together
import tools
from session import say

SUITES = {"pauses": pauses.measure_tail, "stops": stops.measure, "slow": slow.measure, "degraded": degraded.measure,
          "together": together.measure, "poison": poison.measure, "ramp": ramp.measure,
          "sweep": sweep.measure, "loss": loss.measure}

DOCS = os.path.join(tools.ROOT, "docs")

# `tuning_s`: for each setting of Envoy's that is tried. `degraded` is measured at the length of the original.
FULL = SimpleNamespace(rounds=5, tuning_s=8, pauses_warm_s=1, pauses_s=16, stops_warm_s=1, stops_s=10,
                       slow_warm_s=4, slow_s=5, degraded_warm_s=4, degraded_s=60, together_warm_s=2, together_s=9,
                       ramp_warm_s=3, ramp_step_s=3, sweep_s=6, loss_warm_s=3, loss_s=10)
QUICK = SimpleNamespace(rounds=1, tuning_s=1, pauses_warm_s=1, pauses_s=3, stops_warm_s=1, stops_s=3,
                        slow_warm_s=4, slow_s=2, degraded_warm_s=2, degraded_s=8, together_warm_s=2, together_s=6,
                        ramp_warm_s=1, ramp_step_s=1, sweep_s=1, loss_warm_s=1, loss_s=2)


def main():
    options = session.parser(__doc__, SUITES, "docs/tail.md")
    options.add_argument("--testapp", metavar="PATH", help="the backend whose delay can be set; built if not given")
    args = session.parsed(options, SUITES)
    results = session.merged(args.tables) if args.tables else measured(args)
    pages = texts(results)
    print(*pages.values(), sep="\n")
    if args.write_docs and results["quick"]:
        sys.exit("bench: a quick run is nothing for the documentation")
    plots = DOCS if args.write_docs else tools.DIRECTORY
    tail_report.write_plots(results["suites"], plots)
    say(f"plots: {os.path.relpath(plots, tools.ROOT)}/tail-*.svg")
    if args.write_docs:
        for command, text in pages.items():
            report.write_docs(os.path.join(DOCS, "tail.md"), text, command)
    session.end(results)


def texts(results):
    """By the command that the page names; `loss` has a part of its own, as it may be measured at another time."""
    others = {**results, "suites": {name: suite for name, suite in results["suites"].items() if name != "loss"}}
    found = {}
    if others["suites"] or "loss" not in results["suites"]:
        found["make bench-tail"] = tail_report.markdown(others)
    if "loss" in results["suites"]:
        found["make bench-tail BENCH='--only loss'"] = loss_report.markdown(results)
    return found


def measured(args):
    debian = {**tools.DEBIAN, "ip": "iproute2", "iptables": "iptables"} if "loss" in args.only else tools.DEBIAN
    found = tools.Tools(args, needs_envoy=True, needs_testapp=True, debian=debian)

    def measure(suite, work, times, _):
        return SUITES[suite](found, work, times, say)

    return session.measured(args, "tail", SUITES, found, QUICK if args.quick else FULL, measure)


if __name__ == "__main__":
    main()
