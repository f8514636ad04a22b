"""Results of `make bench-readers` as Markdown: a table a suite, the targets and whether they are met.

Medians over the rounds; in brackets the worst.
"""

from reader_mesh import MIB
from reader_pauses import UNREAD
from report import grid, heading, ms, row
from stats import median, of_arm, over

RATIO_MAX = 1.5
BUFFERS_MIB = 256
GONE_MAX_S = 30
SHARE_MIN = 0.8

STALLS = {"downloads": "downloads: 500 are not read, 500 are read at 10 kB/s",
          "uploads": "uploads: 500 are not read by the application, 500 at 10 kB/s"}


def markdown(results):
    suites = results["suites"]
    parts = [heading(results)]
    for name, title in STALLS.items():
        if name in suites:
            parts.append(stalls(suites[name], title))
    for name, table in (("pauses", pauses), ("gone", gone), ("paths", paths)):
        if name in suites:
            parts.append(table(suites[name]))
    return "\n\n".join([*parts, "### Targets\n\n" + grid(["target", "measured", ""], targets(suites))]) + "\n"


def stalls(suite, title):
    rows, memory = [], []
    for arm, runs in by_arm(suite):
        rows.append([arm, f"{min(run['begun'] for run in runs)}", *(f"{ms(over(flat(runs, 'quiet'), key))} to "
                     f"{ms(over(flat(runs, 'beside'), key))}" for key in ("p50_us", "p99_us", "p999_us")),
                     *(f"{median(ratios(runs, name)):.2f} ({max(ratios(runs, name)):.2f})"
                       for name in ("same", "other")),
                     str(sum(run["beside"]["failed"] for run in runs)),
                     f"{median([run['slow_share'] for run in runs]):.0%}"])
        if not arm.startswith("direct"):
            memory.append([arm, *(grown(runs, host) for host in "ab"),
                           *(f"{median([run['resident'][host]['after_mib'] for run in runs]):.0f} MiB"
                             for host in "ab"),
                           *(f"{median([in_kernel(run, host) for run in runs]):.0f} MiB" for host in "ab"),
                           f"{median([run['kernel_grown_mib'] for run in runs]):.0f} MiB"])
    return (f"### {suite['callers']} {title}\n\n"
            f"Others, {suite['rate_per_sec']} a second, before and beside them; the ratios are of p99:\n\n"
            + grid(["stalled callers", "under way", "p50", "p99", "p99.9", "× same service", "× other service", "failed",
                    "slow ones got"], rows)
            + "\n\nMemory of the two hosts:\n\n"
            + grid(["stalled callers", "A grew by", "B grew by", "A 3 s later", "B 3 s later", "in A's sockets",
                    "in B's sockets", "TCP of the whole machine grew by"], memory))


def by_arm(suite):
    return [(arm, of_arm(suite["runs"], arm)) for arm in sorted({run["arm"] for run in suite["runs"]},
                                                                key=lambda arm: (arm.startswith("direct"), arm))]


def flat(runs, phase):
    return [run[phase] for run in runs]


def ratios(runs, name):
    return [run["ratios"][name] for run in runs]


def growth(run, host):
    return run["resident"][host]["peak_mib"] - run["resident"][host]["before_mib"]


def grown(runs, host):
    values = [growth(run, host) for run in runs]
    return f"{median(values):.0f} MiB ({max(values):.0f})"


def in_kernel(run, host):
    return run["in_sockets"][host]["to_read_mib"] + run["in_sockets"][host]["to_send_mib"]


def pauses(suite):
    rows = [[run["way"], version(run), "does not read" if run["kind"] == "unread" else "is stopped (SIGSTOP)",
             ("gets the rest" if run["kind"] == "unread" else "goes on") if run["good"] else f"**cut: {run['error']}**, {run['received'] / MIB:.1f} MiB"]
            for run in suite["runs"]]
    return (f"### A reader that pauses for {suite['pause_s']:.0f} s\n\n"
            + grid(["way", "caller", "it", "and then"], rows))


def version(run):
    return "HTTP/1.1" if run["version"] == 1 else "HTTP/2"


def gone(suite):
    rows = [[run["arm"], run["what"], within(run["ended_s"], suite), ended_as(run)] for run in suite["runs"]]
    return "### A peer that dies\n\n" + grid(["host B", "what waits on it", "ends after", "as"], rows)


def ended_as(run):
    """What the caller saw; over HTTP/2 it reads no statuses but 200."""
    if run["error"] != "answered":
        return run["error"] or ""
    return f"status {run['status']}" if run["status"] else "another status than 200"


def within(seconds, suite):
    return f"not within {suite['within_s']} s" if seconds is None else f"{seconds:.1f} s"


def paths(suite):
    rows = []
    for path in dict.fromkeys(run["path"] for run in suite["runs"]):
        for direction in ("download", "upload"):
            runs = of_path(suite, path, direction)
            rows.append([path, direction, *(f"{median([run[way][key] for run in runs]) / 1e6:.0f} MB/s"
                         for key in ("steady", "whole") for way in ("plain", "mesh")),
                         f"{median([run['share'] for run in runs]):.0%} ({min(run['share'] for run in runs):.0%})",
                         f"{median([run['whole_share'] for run in runs]):.0%}"])
    return (f"### One stream of {suite['size'] // MIB} MiB over a long path\n\n"
            + grid(["path", "", "plain, steady", "mesh, steady", "plain, whole", "mesh, whole", "share, steady",
                    "share, whole"], rows))


def of_path(suite, path, direction):
    return [run for run in suite["runs"] if (run["path"], run["direction"]) == (path, direction)]


def targets(suites):
    rows = []
    for name in STALLS:
        if name in suites:
            rows += of_stalls(name, suites[name])
    if "pauses" in suites:
        runs = suites["pauses"]["runs"]
        good = sum(run["good"] for run in runs)
        rows.append(row("who pauses gets the rest", f"{good} of {len(runs)}", good == len(runs)))
    if "gone" in suites:
        for arm in ("frozen", "unplugged"):
            ends = [run["ended_s"] for run in of_arm(suites["gone"]["runs"], arm) if UNREAD not in run["what"]]
            last = None if None in ends else max(ends)
            rows.append(row(f"a peer that is {arm} is noticed within {GONE_MAX_S} s",
                            within(last, suites["gone"]), last is not None and last <= GONE_MAX_S))
    if "paths" in suites:
        for direction in ("download", "upload"):
            share = median([run["share"] for run in of_path(suites["paths"], "50 ms, 100 MB/s", direction)])
            rows.append(row(f"one {direction} over 50 ms ≥ {SHARE_MIN:.0%} of a plain connection", f"{share:.0%}",
                            share >= SHARE_MIN))
    return rows


def of_stalls(name, suite):
    rows = []
    for arm, runs in by_arm(suite):
        if arm.startswith("direct"):
            continue
        worst = max(median(ratios(runs, target)) for target in ("same", "other"))
        rows.append(row(f"{name}, {arm}: p99 of others ≤ {RATIO_MAX} × of without", f"{worst:.2f}", worst <= RATIO_MAX))
        most = max(median([growth(run, host) for run in runs]) for host in "ab")
        rows.append(row(f"{name}, {arm}: memory grows ≤ `limits.buffers` ({BUFFERS_MIB} MiB)", f"{most:.0f} MiB",
                        most <= BUFFERS_MIB))
    return rows
