"""Results of `make bench-ratelimit` as Markdown: a table a suite, the targets and whether they are met."""

from limit_cost import PAIRS
from limit_shared import ms
from report import grid, heading, named, row, us
from stats import median, of_arm, over

SUITES = ("core", "cost", "admitted", "shared", "simulated")


def markdown(results):
    suites = results["suites"]
    tables = {"core": core, "cost": cost, "admitted": admitted, "shared": shared, "simulated": simulated}
    parts = [heading(results)] + [tables[name](suites[name]) for name in SUITES if name in suites]
    return "\n\n".join([*parts, "### Targets\n\n" + grid(["target", "measured", ""], targets(suites))]) + "\n"


def core(suite):
    figures = suite["median_ns"]
    rows = [
        ["one decision, admitted", f"{figures['decide/admitted']:.1f} ns"],
        ["one decision, refused", f"{figures['decide/refused']:.1f} ns"],
        ["one decision by key, 100,000 keys in turn", f"{figures['decide/by_key_of_100000']:.1f} ns"],
        ["10,000 clients shared out, `fair_share`", f"{figures['allocate_10000/FairShare'] / 1e6:.3f} ms"],
        ["10,000 clients shared out, `proportional_share`",
         f"{figures['allocate_10000/ProportionalShare'] / 1e6:.3f} ms"],
        ["one refresh among 10,000 clients", f"{figures['refresh_among_10000'] / 1e3:.2f} µs"],
        *([f"a root hears {int(hosts):,} hosts, decides and answers all",
           f"{figures[f'root_round/{hosts}'] / 1e6:.2f} ms"] for hosts in ("100", "1000", "10000")),
    ]
    return "### The core, in processor time\n\n" + grid(["", "median"], rows)


def cost(suite):
    rows = []
    for arm, plain in PAIRS.items():
        limited, bare = of_arm(suite["runs"], arm), of_arm(suite["runs"], plain)
        rows.append([named(arm), f"{over(limited, 'per_sec'):,.0f}", f"{over(bare, 'per_sec'):,.0f}",
                     us(over(limited, "cpu_us"), 2), us(over(bare, "cpu_us"), 2),
                     ", ".join(f"{added:+.2f}" for added in differences(suite["runs"], arm, plain)) + " µs"])
    return ("### What a rule costs at saturation\n\n"
            + grid(["", "requests/s", "without", "CPU a request", "without", "the rule, round by round"], rows))


def differences(runs, arm, plain):
    by_round = {(run["round"], run["arm"]): run["cpu_us"] for run in runs}
    return [by_round[number, arm] - by_round[number, plain] for number in sorted({n for n, _ in by_round})]


def admitted(suite):
    rows = [[named(run["arm"]), f"{run['came']:,}", f"{run['of_limit']:.2%}", str(run["busiest"]),
             str(run["refused"]), str(sum(run["errors"].values())), us(run["late_p99_us"], 0)] for run in suite["runs"]]
    return (f"### Twice the limit of {suite['rate_per_sec']}/s for {suite['seconds']} s, burst {suite['burst']}\n\n"
            + grid(["", "came", "of the limit", "busiest second", "refused", "failed", "load late by, p99"], rows))


def shared(suite):
    rows = [[f"{run['utilisation']:.2%}", str(run["busiest"]), f"{run['late_p99_us'] / 1e3:.1f} ms"]
            for run in suite["runs"]]
    crashes = [[ms(run["step_ms"]), ms(run["newcomer_ms"]), ms(run["again_ms"]), str(run["busiest"]),
                f"{run['late_p99_us'] / 1e3:.1f} ms"] for run in suite["crashes"]]
    return (f"### {suite['rate_per_sec']}/s shared by processes, {suite['demand']:,}/s asked, a row a round\n\n"
            "Three hosts, steady:\n\n"
            + grid(["used", "busiest second", "load late by, p99"], rows)
            + "\n\nFive hosts: one more begins; then the root is killed and another begins, both of which had lent "
            "what they own:\n\n"
            + grid(["step: 95 % of its share after", "crash: the newcomer's first after",
                    "95 % of what is left used again after", "busiest second", "load late by, p99"], crashes))


def simulated(suite):
    figures = suite["figures"]
    rows = [[what, show(min(figures[key])), show(max(figures[key])), str(len(figures[key]))]
            for what, key, show in (
                ("used in steady overload, 100 hosts", "used", "{:.2%}".format),
                ("most ever usable, of 500, in all of them", "most_of_500", "{:.6g}".format),
                ("a step of demand, 100 hosts: 95 % settled after", "step_s", seconds),
                ("a step of demand, 1,000 hosts: 95 % settled after", "step_of_1000_s", seconds),
                ("the root crashes, 100 hosts: 95 % shared again after", "crash_s", seconds),
                ("a joiner has its part and all is used after", "joined_s", seconds),
                ("after loss, crashes and cuts all is used again after", "healed_s", seconds))]
    return "### Simulated hosts, simulated time\n\n" + grid(["", "least", "most", "runs"], rows)


def seconds(value):
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.2f} s"


def targets(suites):
    rows = []
    for name, judge in (("simulated", of_simulated), ("admitted", of_admitted), ("shared", of_shared),
                        ("core", of_core)):
        if name in suites:
            rows += judge(suites[name])
    return rows


def of_simulated(suite):
    figures = suite["figures"]
    most, used = max(figures["most_of_500"]), min(figures["used"])
    step, crash = max(figures["step_s"]), max(figures["crash_s"])
    return [row("leases over the capacity: 0 (simulated, all faults)", f"{max(most - 500, 0):g} of 500", most <= 500),
            row("used in steady overload ≥ 99 % (100 hosts simulated)", f"{used:.2%}", used >= 0.99),
            row("step of demand, 100 hosts: 95 % settled in ≤ 500 ms (simulated)", seconds(step), step <= 0.5),
            row("root crash: 95 % shared again in ≤ 3 s (100 hosts simulated)", seconds(crash), crash <= 3)]


def of_admitted(suite):
    ours = of_arm(suite["runs"], "evenkeel, one rule")[0]
    allowed = suite["rate_per_sec"] + suite["burst"]
    return [row(f"any second ≤ 100 % and the burst ({allowed}), one host", str(ours["busiest"]),
                ours["busiest"] <= allowed),
            row(f"{suite['seconds']} s ≤ 100.5 %", f"{ours['of_limit']:.2%}", ours["of_limit"] <= 1.005)]


def of_shared(suite):
    allowed = suite["rate_per_sec"] + suite["burst"]
    busiest = max(run["busiest"] for run in suite["runs"] + suite["crashes"])
    used = median(run["utilisation"] for run in suite["runs"])
    newcomer, again = (worst(suite["crashes"], key) for key in ("newcomer_ms", "again_ms"))
    step = worst(suite["crashes"], "step_ms")
    return [row(f"any second ≤ 100 % and the burst ({allowed}), processes, worst round", str(busiest),
                busiest <= allowed),
            row("used in steady overload ≥ 99 % (three processes, median)", f"{used:.2%}", used >= 0.99),
            row("step of demand: 95 % in ≤ 500 ms (five processes, worst round)", ms(step),
                step is not None and step <= 500),
            row("root crash: a newcomer gets > 0 at once (≤ 250 ms; worst round)", ms(newcomer),
                newcomer is not None and newcomer <= 250),
            row("root crash: 95 % of what is left used again in ≤ 3 s (worst round)", ms(again),
                again is not None and again <= 3000)]


def worst(runs, key):
    """`None`, never, is the worst there is."""
    values = [run[key] for run in runs]
    return None if None in values else max(values)


def of_core(suite):
    figures = suite["median_ns"]
    decision = max(figures["decide/admitted"], figures["decide/refused"])
    sharing = figures["allocate_10000/FairShare"] / 1e6
    refreshes = 1e9 / figures["refresh_among_10000"]
    return [row("one decision ≤ 50 ns, no allocation (checked by the benchmark)", f"{decision:.1f} ns", decision <= 50),
            row("10,000 clients shared out in ≤ 1 ms", f"{sharing:.3f} ms", sharing <= 1),
            row("≥ 50,000 refreshes a second", f"{refreshes:,.0f}", refreshes >= 50_000)]
