"""Results of the suite `loss` as Markdown: its own part of docs/tail.md, since it is measured apart from the others."""

from report import grid, heading, ms, named, share, worst
from stats import of_arm, over

# Beside a wait of 30 ms and more for a lost packet, what else runs on the machine counts for little.
BUSY = "the rows without loss suffer from that, the others hardly, since what they wait for are time-outs"


def markdown(results):
    suite = results["suites"]["loss"]
    rows = []
    for lost in dict.fromkeys(run["loss"] for run in suite["runs"]):
        runs = [run for run in suite["runs"] if run["loss"] == lost]
        for arm in dict.fromkeys(run["arm"] for run in runs):
            mine = of_arm(runs, arm)
            rows.append([f"{lost:.0%}", named(arm), ms(over(mine, "p50_us")), worst(mine, "p99_us"),
                         worst(mine, "p999_us"), str(sum(run["failed"] for run in mine)), share(over(mine, "extra")),
                         f"{over(mine, 'cpu_us'):.0f} µs"])
    tries = ", ".join(f"{named(one['arm'])[6:]}: {ms(one['p99_us'])} / {ms(one['p999_us'])} at {share(one['extra'])}"
                      for one in suite["tuning"])
    one = suite["runs"][0]
    return "\n\n".join([
        heading(results, BUSY),
        f"{suite['rate_per_sec']:,} requests/s, {one['sent']:,} a run, {len(suite['runs']) // len(rows)} rounds; in "
        "brackets the worst run.",
        grid(["lost, each way", "", "p50", "p99", "p99.9", "failed", "extra requests", "CPU a request, caller's host"],
             rows),
        f"Envoy's settings were tried once each with {suite['tuned_at']:.0%} lost, and that with the lowest p99.9 kept "
        f"(p99 / p99.9 at extra requests): {tries}."]) + "\n"
