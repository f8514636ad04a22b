#!/usr/bin/env python3
"""`make attack`: known attacks on every port of a mesh of two hosts, while a good client asks 200 times a second.

Each attack lasts a few seconds. It is held to limits (docs/attacks.md): what the good client may feel, memory, the
log, and that /livez answers. Ends with 1 when one does not hold. Everything is on loopback and ends by itself.
"""

import argparse
import collections
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.join(HERE, os.pardir, "bench"))

import tools
from processes import busy_cores
from report import grid, write_docs
from session import joined, keep, say

import verdict
from families import FAMILIES
from mesh import GOOD, Mesh, claimed_net
from watch import Others, Watch, descriptors

RATE = 200
SECONDS = 2.0
SECONDS_MAX = 8.0
QUIET_S = 2.0
# A mesh that nobody attacks and that is slower than this shares the machine with somebody: it is looked at again.
QUIET_P99_MS_MAX = 25
QUIET_TRIES_MAX = 5

# The good client asks before the attack begins and after it ends.
AROUND_S = 0.5
# For a process to end after its time: the good client's patience, and a machine that does much else.
ENDS_WITHIN_S = 20
# For what the attack opened to be closed, before the next one.
SETTLES_WITHIN_S = 10
DESCRIPTORS_SPARE = 32

RESULTS = os.path.join(HERE, "results")
DOCS = os.path.join(tools.ROOT, "docs", "attacks.md")


def main():
    args = parsed()
    asked = [(family, [each for each in family.attacks if wanted(args.only, family, each)]) for family in FAMILIES]
    if not any(attacks for _, attacks in asked):
        sys.exit("attack: nothing has such a name: see --list")
    if args.list:
        for family, attacks in asked:
            for each in attacks:
                print(f"{family.name}/{each.__name__}: {each.__doc__}")
        return
    results = merged(args.tables) if args.tables else measured(args, asked)
    print(markdown(results))
    if args.write_docs:
        write_docs(DOCS, markdown(results), "make attack")
    # What could not be judged did not hold either, as far as anybody knows.
    sys.exit(1 if any(run["broken"] or run["unjudged"] for run in results["runs"]) else 0)


def measured(args, asked):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results = surroundings(args)
    net, claim = claimed_net()
    with claim:
        for family, attacks in asked:
            Session(args, net, results).attack(family, attacks)
    results["others_cores"] = max(results["others_cores"], busy_cores(1))
    kept(results)
    return results


def kept(results):
    keep(os.path.join(tools.ROOT, results["file"]), results)


def merged(paths):
    """Results of several runs as one; of an attack that is in more than one, the last."""
    results, runs = {}, {}
    for path in paths:
        with open(path) as file:
            one = json.load(file)
        runs.update({run["attack"]: run for run in one["runs"]})
        results = {**one, "quiet": {**results.get("quiet", {}), **one["quiet"]},
                   "seconds": sorted({*results.get("seconds", []), *one["seconds"]}),
                   "file": joined(results.get("file"), one["file"]),
                   "commit": joined(results.get("commit"), one["commit"]),
                   "others_cores": max(one["others_cores"], results.get("others_cores", 0))}
    return {**results, "runs": [verdict.judge(run) for run in runs.values()]}


def parsed():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", metavar="NAME", action="append",
                         help="a family, an attack, or FAMILY/ATTACK; may be repeated")
    options.add_argument("--binary", metavar="PATH", help="the program to attack; built (profile thin) if not given")
    options.add_argument("--testapp", metavar="PATH", help="the application behind it; likewise")
    options.add_argument("--seconds", type=float, default=SECONDS, help=f"of each attack ({SECONDS:g})")
    options.add_argument("--once", action="store_true", help="no second try of what was felt, no new mesh for it")
    options.add_argument("--list", action="store_true", help="the attacks and what each does")
    options.add_argument("--tables", metavar="FILE", nargs="+", help="attack nothing: a table of these results")
    options.add_argument("--write-docs", action="store_true", help="put the table into docs/attacks.md")
    args = options.parse_args()
    if not 0.5 <= args.seconds <= SECONDS_MAX:
        options.error(f"--seconds: 0.5 to {SECONDS_MAX:g}")
    if not args.list and not args.tables:
        args.binary = tools.existing(args.binary) or tools.cargo("thin", "evenkeel", "evenkeel")
        args.testapp = tools.existing(args.testapp) or tools.cargo("thin", "evenkeel-tests", "testapp")
    return args


def wanted(only, family, attack):
    names = {family.name, attack.__name__, f"{family.name}/{attack.__name__}"}
    return not only or bool(names & set(only))


def surroundings(args):
    """The head of the results."""
    now = datetime.datetime.now(datetime.timezone.utc)
    commit = tools.commit()
    part = ["-".join(args.only).replace("/", "-")[:100]] if args.only else []
    path = os.path.join(RESULTS, "-".join([now.date().isoformat(), commit, *part]) + ".json")
    return {"date": now.isoformat(timespec="seconds"), "commit": commit, "machine": tools.machine(),
            "version": tools.first_line([args.binary, "--version"]), "python": sys.version.split()[0],
            "others_cores": busy_cores(1), "seconds": [args.seconds], "rate_per_sec": RATE,
            "file": os.path.relpath(path, tools.ROOT), "quiet": {}, "runs": []}


class Session:
    """The attacks of one family, on one mesh while nobody else feels them.

    One that is felt is tried once more on a new mesh, and counts when it is felt again: a second of somebody else's
    work on the machine looks like an attack. The first try stays in the results.
    """

    def __init__(self, args, net, results):
        self.args, self.net, self.results = args, net, results

    def attack(self, family, attacks):
        left, first = collections.deque(f"{family.name}/{each.__name__}" for each in attacks), None
        while left:
            with tempfile.TemporaryDirectory(prefix="evenkeel-attack-") as work, \
                    Mesh(self.net, self.args.binary, self.args.testapp, work) as mesh:
                quiet = self.quiet(mesh)
                self.results["quiet"].setdefault(family.name, quiet)
                say(f"{family.name}: {family.about}; quiet p99 {quiet['p99_ms']:.1f} ms")
                while left:
                    run = self.one(mesh, left[0], quiet)
                    if (run["felt"] or run["unjudged"]) and first is None and not self.args.once:
                        say(f"{left[0]}, tried once more: {'; '.join(run['broken'] + run['unjudged'])}")
                        first = run
                        break
                    run["first_try"], first = first, None
                    self.results["runs"].append(run)
                    kept(self.results)
                    left.popleft()
                    print(verdict.line(run), flush=True)
                    if run["felt"] and not self.args.once or not all(host.alive() for host in mesh.hosts):
                        break

    def quiet(self, mesh):
        """What the good client sees of a mesh that nobody attacks, once its connections are there."""
        ended(self.client(mesh, 0.5))
        for _ in range(QUIET_TRIES_MAX):
            seen = ended(self.client(mesh, QUIET_S))
            if "error" in seen or seen["failed"]:
                raise SystemExit(f"attack: a mesh that nobody attacks fails: {seen}")
            if seen["p99_ms"] <= QUIET_P99_MS_MAX:
                break
        return seen

    def client(self, mesh, seconds):
        child = started("client.py", f"{mesh.a.ip}:7080", GOOD, RATE, seconds)
        child.stdout.readline()
        return child

    def one(self, mesh, name, quiet):
        seconds = self.args.seconds
        before = {host.name: descriptors(host.pid) for host in mesh.hosts}
        watches = {host.name: Watch(host) for host in mesh.hosts}
        others = Others(mesh)
        client = self.client(mesh, seconds + 2 * AROUND_S)
        try:
            with watches["a"], watches["b"]:
                time.sleep(AROUND_S)
                attacker = ended(started("attacker.py", name, self.net, seconds))
                seen = ended(client)
                if "error" in seen:
                    raise SystemExit(f"attack: the good client broke off: {seen['error']}")
        finally:
            client.kill()
        others_cores, settled = others.cores(), settles(mesh, before)
        run = {"attack": name, "quiet_p99_ms": quiet["p99_ms"], "others_cores": others_cores, "client": seen,
               "attacker": attacker, "settled_s": settled,
               "hosts": {host: watch.seen for host, watch in watches.items()}}
        verdict.judge(run)
        if run["broken"]:
            run["log_tails"] = {host.name: tail(host.log) for host in mesh.hosts}
        return run


def started(script, *args):
    return subprocess.Popen([sys.executable, os.path.join(HERE, script), *map(str, args)],
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(child):
    """What it said last; what it died of, if it did."""
    try:
        said, cause = child.communicate(timeout=SECONDS_MAX + ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return {"error": "it did not end in time"}
    if child.returncode:
        return {"error": (cause.strip().splitlines() or [f"status {child.returncode}"])[-1]}
    return json.loads(said.splitlines()[-1])


def settles(mesh, before):
    """Seconds until the hosts have closed what the attack opened; None: not within the time."""
    begin = time.monotonic()
    while any(descriptors(host.pid) > before[host.name] + DESCRIPTORS_SPARE for host in mesh.hosts):
        if time.monotonic() - begin > SETTLES_WITHIN_S:
            return None
        time.sleep(0.05)
    return time.monotonic() - begin


def tail(path):
    with open(path, errors="replace") as log:
        return log.read()[-2000:].splitlines()


def markdown(results):
    machine, runs = results["machine"], results["runs"]
    lost, unjudged = ([run for run in runs if run[what]] for what in ("broken", "unjudged"))
    quiet = max(one["p99_ms"] for one in results["quiet"].values())
    seconds = " or ".join(f"{seconds:g}" for seconds in results["seconds"])
    head = (f"{results['date'][:10]}, commit {results['commit']}, {machine['model']}, {machine['cores']} cores "
            f"(hypervisor: {machine['hypervisor']}), Linux {machine['kernel']}. {len(runs)} attacks of {seconds} s: "
            f"{len(lost)} with a limit that did not hold, {len(unjudged)} not judged because others used the machine; "
            f"quiet p99 up to {quiet:.1f} ms. Raw results: `{results['file']}`.")
    broken = [f"- `{run['attack']}`: {'; '.join(run['broken'])}" for run in lost]
    return "\n\n".join(filter(None, [head, grid(verdict.HEAD, map(verdict.row, runs)), "\n".join(broken)])) + "\n"


if __name__ == "__main__":
    main()
