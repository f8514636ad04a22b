#!/usr/bin/env python3
"""`make bench`: Evenkeel beside HAProxy and Envoy on this machine, a quarter of an hour.

Sets up what it needs, measures, keeps every run in tests/bench/results/, prints tables. Everything runs on loopback
addresses; the proxy under test has core 0 to itself, all else shares core 1. Leave the machine alone meanwhile.
"""

import argparse
import datetime
import json
import os
import shutil
import signal
import sys
import tempfile
from types import SimpleNamespace

import cost
import latency
import memory
import pauses
import proxies
import report
import tools
from processes import LOAD_CORE, PROXY_CORE, busy_cores

SUITES = ("cost", "latency", "memory", "pauses")

RESULTS = os.path.join(tools.HERE, "results")
DOCS = os.path.join(tools.ROOT, "docs", "performance.md")

FULL = SimpleNamespace(rounds=5, warm_s=1, cost_s=5, trace_s=3, latency_s=5, idle_s=30, pauses_warm_s=1, pauses_s=20)
QUICK = SimpleNamespace(rounds=2, warm_s=1, cost_s=2, trace_s=1, latency_s=2, idle_s=3, pauses_warm_s=1, pauses_s=4)

# How long others are watched, before the runs and after each suite, in seconds.
WATCH_S = 2


def main():
    args = arguments()
    if args.tables:
        results = merged(args.tables)
    else:
        results = measured(args)
    text = report.markdown(results)
    print(text)
    if args.write_docs and results["quick"]:
        sys.exit("bench: a quick run is nothing for the documentation")
    if args.write_docs:
        report.write_docs(DOCS, text)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evenkeel", metavar="PATH",
                        help="the program to measure; built in the release profile if not given")
    parser.add_argument("--openload", metavar="PATH", help="the load at a fixed rate; built if not given")
    parser.add_argument("--only", metavar="SUITES", default=",".join(SUITES), help="some of " + ",".join(SUITES))
    parser.add_argument("--rate", type=float,
                        help="requests a second of `latency` instead of half of HAProxy's saturation")
    parser.add_argument("--rounds", type=int, help="how often each arm runs (5)")
    parser.add_argument("--quick", action="store_true",
                        help="short runs, to try the harness; not kept with the results")
    parser.add_argument("--write-docs", action="store_true",
                        help="put the tables into docs/performance.md")
    parser.add_argument("--tables", metavar="FILE", nargs="+", help="measure nothing: tables of these results, "
                        "each suite from the last file that has it")
    args = parser.parse_args()
    args.only = [name for name in SUITES if name in args.only.split(",")]
    if not args.only:
        parser.error("--only: some of " + ",".join(SUITES))
    if args.rounds is not None and args.rounds < 1:
        parser.error("--rounds: at least 1")
    return args


def measured(args):
    if not {PROXY_CORE, LOAD_CORE} <= os.sched_getaffinity(0):
        sys.exit(f"bench: needs cores {PROXY_CORE} and {LOAD_CORE}")
    found = tools.Tools(args, args.only)
    now = datetime.datetime.now(datetime.timezone.utc)
    results = {"date": now.isoformat(timespec="seconds"), "commit": tools.commit(), "quick": args.quick,
               "machine": tools.machine(), "versions": found.versions(), "others_cores": busy_cores(WATCH_S)}
    # What this harness starts without saying where runs on the load's core.
    os.sched_setaffinity(0, {LOAD_CORE})
    # An end by a signal takes everything down that was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    times = SimpleNamespace(**vars(QUICK if args.quick else FULL))
    times.rounds = args.rounds or times.rounds
    results["times"] = vars(times)
    directory = tools.DIRECTORY if args.quick else RESULTS
    part = "" if len(args.only) == len(SUITES) else "-" + "-".join(args.only)
    name = "quick" if args.quick else f"{results['date'][:10]}-{results['commit']}{part}"
    path = os.path.join(directory, f"{name}.json")
    results.update(file=os.path.relpath(path, tools.ROOT), suites={}, configurations=proxies.CONFIGS)
    work = tempfile.mkdtemp(prefix="evenkeel-bench-")
    os.chmod(work, 0o755)  # nginx's workers are another user
    try:
        for suite in args.only:
            results["suites"][suite] = measure(suite, found, work, times, args, results["suites"])
            results["others_cores"] = max(results["others_cores"], busy_cores(WATCH_S))
            keep(path, results)  # each at once: the next may fail
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return results


def measure(suite, found, work, times, args, done):
    if suite == "cost":
        return cost.measure(found, work, times, say)
    if suite == "latency":
        return latency.measure(found, work, times, say, args.rate or half_of_peer(done))
    if suite == "memory":
        return memory.measure(found, work, times, say)
    return pauses.measure(found, work, times, say)


def keep(path, results):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        json.dump(results, file, indent=1)
        file.write("\n")


def half_of_peer(done):
    """From the cost runs, when they were made; `latency` finds it by itself otherwise."""
    if "cost" not in done:
        return None
    return latency.half(report.over(report.of_arm(done["cost"]["runs"], "haproxy"), "per_sec"))


def merged(paths):
    results = {}
    for path in paths:
        with open(path) as file:
            one = json.load(file)
        results = {**one, "suites": {**results.get("suites", {}), **one["suites"]},
                   "file": ", ".join(filter(None, [results.get("file"), one["file"]])),
                   "quick": one["quick"] or results.get("quick", False)}
    return results


def say(line):
    print(f"{datetime.datetime.now():%H:%M:%S} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
