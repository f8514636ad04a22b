"""One session of measurements, whichever suites it has: its options, its surroundings, where its results are kept.

A suite that breaks off does not take the others with it: the session goes on, says so in its tables, and ends with 1.
The results are written after every suite; a quick run's go under target/ and count for nothing.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import proxies
import tools
from processes import LOAD_CORE, PROXY_CORE, busy_cores

RESULTS = os.path.join(tools.HERE, "results")

# How long others are watched, before the runs and after each suite, in seconds.
WATCH_S = 2


def parser(text, suites, page):
    options = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--evenkeel", metavar="PATH",
                         help="the program to measure; built in the release profile if not given")
    options.add_argument("--openload", metavar="PATH", help="the load at a fixed rate; built if not given")
    options.add_argument("--only", metavar="SUITES", default=",".join(suites), help="some of " + ",".join(suites))
    options.add_argument("--rounds", type=int, help="how often each arm runs (5)")
    options.add_argument("--quick", action="store_true",
                         help="short runs, to try the harness; not kept with the results")
    options.add_argument("--write-docs", action="store_true", help=f"put the tables into {page}")
    options.add_argument("--tables", metavar="FILE", nargs="+", help="measure nothing: tables of these results, "
                         "each suite from the last file that has it")
    return options


def parsed(options, suites):
    args = options.parse_args()
    asked = args.only.split(",")
    args.only = [name for name in suites if name in asked]
    if not args.only or set(asked) - set(suites):
        options.error("--only: some of " + ",".join(suites))
    if args.rounds is not None and args.rounds < 1:
        options.error("--rounds: at least 1")
    if args.quick and args.write_docs:
        options.error("--write-docs: a quick run is nothing for the documentation")
    return args


def measured(args, name, suites, found, times, measure):
    """Runs what was asked for; `measure(suite, work, times, done)` gives the results of one suite."""
    if not {PROXY_CORE, LOAD_CORE} <= os.sched_getaffinity(0):
        sys.exit(f"bench: needs cores {PROXY_CORE} and {LOAD_CORE}")
    now = datetime.datetime.now(datetime.timezone.utc)
    results = {"date": now.isoformat(timespec="seconds"), "commit": tools.commit(), "quick": args.quick,
               "machine": tools.machine(), "versions": found.versions(), "others_cores": busy_cores(WATCH_S)}
    # What this harness starts without saying where runs on the load's core.
    os.sched_setaffinity(0, {LOAD_CORE})
    # An end by a signal takes everything down that was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    times = SimpleNamespace(**vars(times))
    times.rounds = args.rounds or times.rounds
    results["times"] = vars(times)
    path = kept_at(args, name, suites, results)
    results.update(file=os.path.relpath(path, tools.ROOT), suites={}, broken={}, configurations=proxies.CONFIGS)
    work = tempfile.mkdtemp(prefix="evenkeel-bench-")
    os.chmod(work, 0o755)  # nginx's workers are another user
    try:
        for suite in args.only:
            try:
                results["suites"][suite] = measure(suite, work, times, results["suites"])
            except (SystemExit, subprocess.SubprocessError, OSError) as error:
                if isinstance(error, SystemExit) and not isinstance(error.code, str):
                    raise  # asked to end
                results["broken"][suite] = str(error)
                say(f"{suite} was broken off: {error}")
            results["others_cores"] = max(results["others_cores"], busy_cores(WATCH_S))
            keep(path, results)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return results


def kept_at(args, name, suites, results):
    if args.quick:
        return os.path.join(tools.DIRECTORY, "-".join(filter(None, ["quick", name])) + ".json")
    part = [] if len(args.only) == len(suites) else args.only
    words = filter(None, [results["date"][:10], results["commit"], name, *part])
    return os.path.join(RESULTS, "-".join(words) + ".json")


def keep(path, results):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    text = json.dumps(results, indent=1)
    # A histogram stays on one line.
    text = re.sub(r'\{(?:\s+"\d+": \d+,?)+\s+\}', lambda found: re.sub(r"\s+", " ", found[0]), text)
    with open(path, "w") as file:
        file.write(text + "\n")


def joined(before, one):
    return one if before in (None, one) else f"{before}, {one}"


def merged(paths):
    results = {}
    for path in paths:
        with open(path) as file:
            one = json.load(file)
        results = {**one, "suites": {**results.get("suites", {}), **one["suites"]},
                   "file": joined(results.get("file"), one["file"]),
                   "commit": joined(results.get("commit"), one["commit"]),
                   "others_cores": max(one["others_cores"], results.get("others_cores", 0)),
                   "broken": {},
                   "quick": one["quick"] or results.get("quick", False)}
    return results


def end(results):
    """What a run of this harness ends with."""
    sys.exit(1 if results.get("broken") else 0)


def say(line):
    print(f"{datetime.datetime.now():%H:%M:%S} {line}", file=sys.stderr, flush=True)
