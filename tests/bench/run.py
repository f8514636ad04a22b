#!/usr/bin/env python3
"""`make bench`: Evenkeel beside HAProxy and Envoy on this machine, a quarter of an hour.

Sets up what it needs, measures, keeps every run in tests/bench/results/, prints tables. Everything runs on loopback
addresses; the proxy under test has core 0 to itself, all else shares core 1. Leave the machine alone meanwhile.
"""

import os
import sys
from types import SimpleNamespace

import cost
import latency
import memory
import pauses
import report
import session
import tools
from session import say

SUITES = ("cost", "latency", "memory", "pauses")

DOCS = os.path.join(tools.ROOT, "docs", "performance.md")

FULL = SimpleNamespace(rounds=5, warm_s=1, cost_s=5, trace_s=3, latency_s=5, idle_s=30, pauses_warm_s=1, pauses_s=20)
QUICK = SimpleNamespace(rounds=2, warm_s=1, cost_s=2, trace_s=1, latency_s=2, idle_s=3, pauses_warm_s=1, pauses_s=4)


def main():
    options = session.parser(__doc__, SUITES, "docs/performance.md")
    options.add_argument("--rate", type=float,
                         help="requests a second of `latency` instead of half of HAProxy's saturation")
    args = session.parsed(options, SUITES)
    results = session.merged(args.tables) if args.tables else measured(args)
    text = report.markdown(results)
    print(text)
    if args.write_docs and results["quick"]:
        sys.exit("bench: a quick run is nothing for the documentation")
    if args.write_docs:
        report.write_docs(DOCS, text)
    session.end(results)


def measured(args):
    found = tools.Tools(args, needs_envoy=bool({"pauses", "memory"} & set(args.only)))

    def measure(suite, work, times, done):
        if suite == "cost":
            return cost.measure(found, work, times, say)
        if suite == "latency":
            return latency.measure(found, work, times, say, args.rate or half_of_peer(done))
        if suite == "memory":
            return memory.measure(found, work, times, say)
        return pauses.measure(found, work, times, say)

    return session.measured(args, "", SUITES, found, QUICK if args.quick else FULL, measure)


def half_of_peer(done):
    """From the cost runs, when they were made; `latency` finds it by itself otherwise."""
    if "cost" not in done:
        return None
    return latency.half(report.over(report.of_arm(done["cost"]["runs"], "haproxy"), "per_sec"))


if __name__ == "__main__":
    main()
