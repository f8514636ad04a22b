"""Results as Markdown: one table a suite, then the targets and whether they are met.

Medians over the rounds; in brackets the range, or the worst where it says so.
"""

import os
import re

from pauses import ENVOY_ARMS
from stats import median, of_arm, over, ratios

BEGIN, END = "<!-- figures: written by {} -->", "<!-- end of figures -->"

NAMES = {"evenkeel": "Evenkeel", "haproxy": "HAProxy", "envoy": "Envoy", "nginx": "nginx", "direct": "no proxy"}


def markdown(results):
    suites = results["suites"]
    parts = [heading(results)]
    for name, table in (("cost", cost), ("latency", latency), ("memory", memory), ("pauses", pauses)):
        if name in suites:
            parts.append(table(suites[name]))
    rows = targets(suites)
    if rows:
        parts.append("### Targets\n\n" + grid(["target", "measured", ""], rows))
    return "\n\n".join(parts) + "\n"


def heading(results, busy="do not rely on these figures"):
    """Where and when it was measured. `busy`: what it means that others were at work."""
    machine, versions = results["machine"], results["versions"]
    peers = ", ".join(short(versions[name]) for name in ("haproxy", "envoy", "nginx", "wrk") if name in versions)
    lines = [f"{results['date'][:10]}, commit {results['commit']}, {machine['model']}, {machine['cores']} cores "
             f"(hypervisor: {machine['hypervisor']}), Linux {machine['kernel']}{'; ' if peers else ''}{peers}. "
             f"Raw results: `{results['file']}`."]
    if results["quick"]:
        lines.append("**A quick run: it shows that the harness works, the figures mean nothing.**")
    for suite, error in results.get("broken", {}).items():
        lines.append(f"**`{suite}` was broken off, so it is missing here: {error}**")
    if results["others_cores"] > BUSY_CORES:
        lines.append(f"**Others kept {results['others_cores']:.2f} cores of the machine busy: "
                     f"{busy}.**")
    return "\n\n".join(lines)


def short(version):
    """`name version`, out of what a program says of itself."""
    found = re.search(r"(?i)\b(haproxy|nginx|wrk|envoy)\b.*?(\d[\w.+-]*\.\d[\w.+-]*)", version.replace("/", " "))
    return f"{found[1]} {found[2]}" if found else version


def cost(suite):
    rows = []
    for arm in ("evenkeel", "haproxy"):
        runs, calls = of_arm(suite["runs"], arm), suite["syscalls_per_request"][arm]
        most = sorted(calls["calls"].items(), key=lambda call: -call[1])[:5]
        rows.append([named(arm), us(over(runs, "cpu_us"), 2), us(over(runs, "user_us"), 2),
                     us(over(runs, "system_us"), 2), f"{over(runs, 'per_sec'):,.0f}",
                     f"{calls['total']:.2f}: " + ", ".join(f"{name} {count:.2f}" for name, count in most)])
    return ("### Cost at saturation\n\n"
            + grid(["", "CPU a request", "user", "system", "requests/s", "system calls a request"], rows)
            + f"\n\nEvenkeel / HAProxy: {spread(ratios(suite['runs'], 'cpu_us', 'evenkeel', 'haproxy'))}.")


def latency(suite):
    rows = []
    for arm in ("direct", "evenkeel", "haproxy"):
        runs = of_arm(suite["runs"], arm)
        rows.append([named(arm), *(us(over(runs, key), 0) for key in
                                   ("p50_us", "p99_us", "added_p50_us", "added_p99_us")),
                     *(us(over(runs, key), 2) for key in ("cpu_us", "user_us", "system_us")),
                     us(over(runs, "late_p99_us"), 0)])
    text = (f"### At {suite['rate_per_sec']:,.0f} requests/s, half of HAProxy's saturation\n\n"
            + grid(["", "p50", "p99", "added p50", "added p99", "CPU a request", "user", "system",
                    "load late by, p99"], rows)
            + "\n\nEvenkeel / HAProxy, CPU a request: "
            + f"{spread(ratios(suite['runs'], 'cpu_us', 'evenkeel', 'haproxy'))}.")
    slow = {named(run["arm"]) for run in suite["runs"] if run["per_sec"] < 0.98 * suite["rate_per_sec"]}
    if slow:
        text += f" **The rate was not reached by: {', '.join(sorted(slow))}.**"
    return text


def memory(suite):
    rows = [[named(run["arm"]), *(f"{run[key]:.1f} MiB" for key in
                                                       ("resident_mib", "anon_mib", "file_mib"))]
            for run in suite["runs"]]
    return (f"### Memory, idle, {suite['runs'][0]['after_s']} s after the start\n\n"
            + grid(["", "resident", "anonymous", "files"], rows))


def pauses(suite):
    return (f"### Pauses, {suite['rate_per_sec']} requests/s, {suite['runs'][0]['sent']:,} a run, "
            "in brackets the worst run\n\n" + tails(suite["runs"]))


def tails(runs):
    """One row an arm, as they first ran."""
    rows = []
    for arm in dict.fromkeys(run["arm"] for run in runs):
        mine = of_arm(runs, arm)
        rows.append([named(arm), ms(over(mine, "p50_us")), *(worst(mine, key) for key in ("p99_us", "p999_us")),
                     str(sum(run["failed"] for run in mine)),
                     f"{over(mine, 'extra'):.1%} ({over(mine, 'extra', max):.1%})", us(over(mine, "cpu_us"), 0),
                     ms(over(mine, "late_p99_us"))])
    return grid(["", "p50", "p99", "p99.9", "failed", "extra requests", "CPU a request", "load late by, p99"], rows)


def targets(suites):
    rows = []
    if "cost" in suites:
        ratio = median(ratios(suites["cost"]["runs"], "cpu_us", "evenkeel", "haproxy"))
        rows.append(row("CPU a request at saturation ≤ 1.0 × HAProxy", f"{ratio:.2f}", ratio <= 1.0))
        rows.append(row("… first landing ≤ 1.15 ×", f"{ratio:.2f}", ratio <= 1.15))
    if "latency" in suites:
        runs = suites["latency"]["runs"]
        ratio = median(ratios(runs, "cpu_us", "evenkeel", "haproxy"))
        rows.append(row("CPU a request at half of HAProxy's saturation ≤ 1.0 × HAProxy", f"{ratio:.2f}", ratio <= 1.0))
        rows.append(row("… first landing ≤ 1.15 ×", f"{ratio:.2f}", ratio <= 1.15))
        ours, theirs = (over(of_arm(runs, arm), "added_p99_us") for arm in ("evenkeel", "haproxy"))
        rows.append(row("added p99 ≤ HAProxy's", f"{us(ours, 0)} and {us(theirs, 0)}", ours <= theirs))
    if "memory" in suites:
        most = max(run["resident_mib"] for run in suites["memory"]["runs"] if run["arm"].startswith("evenkeel"))
        rows.append(row("memory ≤ 12 MiB", f"{most:.1f} MiB", most <= 12))
    if "pauses" in suites:
        rows += pause_targets(suites["pauses"]["runs"])
    return rows


def pause_targets(runs, envoys=ENVOY_ARMS):
    ours = of_arm(runs, "evenkeel")
    rows = [limit("pauses: p99 ≤ 3 ms", ours, "p99_us", 3000, ms),
            limit("pauses: p99.9 ≤ 10 ms", ours, "p999_us", 10000, ms),
            limit("pauses: ≤ 5 % extra", ours, "extra", 0.05, share)]
    # Its best setting: the one with the lowest p99.9.
    best = min((of_arm(runs, arm) for arm in envoys), key=lambda runs: over(runs, "p999_us"))
    keys = ("p99_us", "p999_us", "extra")
    better = [over(ours, key) < over(best, key) for key in keys]
    rows.append(row("pauses: better than tuned Envoy in all three",
                    f"better in {sum(better)} of 3 (against {named(best[0]['arm'])})", all(better)))
    return rows


def limit(target, runs, key, most, show):
    """Met when the worst run is within."""
    middle, highest = over(runs, key), over(runs, key, max)
    return row(f"{target}, median and worst run", f"{show(middle)} and {show(highest)}", highest <= most)


def row(target, measured, met):
    return [target, measured, "met" if met else "**missed**"]


def named(arm):
    """`haproxy` is HAProxy; what follows the first word stays."""
    first = re.match(r"\w+", arm)[0]
    return NAMES[first] + arm[len(first):]


def grid(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def us(value, digits):
    return "" if value is None else f"{value:.{digits}f} µs"


def ms(value):
    return f"{value / 1e3:.2f} ms"


def share(value):
    return f"{value:.1%}"


def worst(runs, key):
    return f"{ms(over(runs, key))} ({ms(over(runs, key, max))})"


def spread(values):
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f} in {len(values)} rounds)"


def write_docs(path, text, command="make bench"):
    """Replaces what stands between the markers."""
    begin = BEGIN.format(command)
    with open(path) as file:
        page = file.read()
    if begin not in page or END not in page:
        raise SystemExit(f"bench: {os.path.basename(path)} has lost its markers `{begin}` and `{END}`")
    before, rest = page.split(begin, 1)
    after = rest.split(END, 1)[1]
    with open(path, "w") as file:
        file.write(f"{before}{begin}\n\n{text}\n{END}{after}")


# More than this, before or after the runs, and somebody else was at work.
BUSY_CORES = 0.1
