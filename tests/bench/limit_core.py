"""The core's own figures: its benchmarks in processor time, and its simulations in simulated time."""

import json
import os
import re
import subprocess

import tools as programs

# As criterion names them.
DECISIONS = ("decide/admitted", "decide/refused", "decide/by_key_of_100000")
SHARING = ("allocate_10000/FairShare", "allocate_10000/ProportionalShare", "refresh_among_10000",
           "root_round/100", "root_round/1000", "root_round/10000")

SECONDS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}

# A line's begin, or what the test runner has put before it.
BEGIN = r"(?:^|\.\.\. )"

# What the simulations print, each time they run.
SAID = {
    "used": BEGIN + r"utilisation ([\d.]+), most ever",
    "most_of_500": r"most(?: ever usable)? ([\d.]+)(?: of 500)?$",
    "step_s": BEGIN + r"95 % settled after Some\(([^)]+)\)",
    "step_of_1000_s": BEGIN + r"95 % of a thousand settled after Some\(([^)]+)\)",
    "crash_s": BEGIN + r"95 % shared again after (\S+)",
    "joined_s": BEGIN + r"joined after Some\(([^)]+)\)",
    "healed_s": r"healed after Some\(([^)]+)\)",
}


BENCH = ["cargo", "bench", "--locked", "-p", "evenkeel-ratelimit", "--bench", "decide", "--bench", "share"]
SIMULATE = ["cargo", "test", "--locked", "--profile", "thin", "-p", "evenkeel-ratelimit", "--test", "simulation"]


def build(suites):
    """With all cores, before anything is measured."""
    for suite, argv in (("core", BENCH), ("simulated", SIMULATE)):
        if suite in suites:
            subprocess.run([*argv, "--no-run"], cwd=programs.ROOT, check=True)


def measure_core(_, work, times, say):
    argv = [*BENCH, "--", "--warm-up-time", "1", "--measurement-time", "1" if times.rounds == 1 else "3"]
    subprocess.run(argv, cwd=programs.ROOT, check=True, stdout=subprocess.DEVNULL)
    figures = {name: median_ns(name) for name in (*DECISIONS, *SHARING)}
    for name, nanoseconds in figures.items():
        say(f"core {name}: {nanoseconds:,.1f} ns")
    return {"command": " ".join(argv), "median_ns": figures}


def median_ns(name):
    path = os.path.join(programs.TARGET, "criterion", *name.split("/"), "new", "estimates.json")
    with open(path) as file:
        return json.load(file)["median"]["point_estimate"]


def measure_simulated(_, work, times, say):
    argv = [*SIMULATE, "--", "--nocapture", "--test-threads=1"]
    done = subprocess.run(argv, cwd=programs.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the simulations failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    figures = {key: [number(found) for found in re.findall(said, done.stdout, re.M)] for key, said in SAID.items()}
    missing = [key for key, values in figures.items() if not values]
    if missing:
        raise SystemExit(f"the simulations do not say any more: {', '.join(missing)}")
    say(f"simulated: used {min(figures['used']):.2%}, most {max(figures['most_of_500']):g} of 500, "
        f"step {max(figures['step_s']) * 1e3:.0f} ms, crash {max(figures['crash_s']):.2f} s")
    return {"command": " ".join(argv), "figures": figures}


def number(text):
    """A plain number, or a duration as Rust prints it."""
    found = re.fullmatch(r"([\d.]+)(ns|µs|ms|s)?", text)
    return float(found[1]) * SECONDS.get(found[2], 1)
