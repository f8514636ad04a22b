#!/usr/bin/env python3
"""`make bench-ratelimit`: limits that hosts share, and what a rule costs beside HAProxy and Envoy; 12 minutes.

The harness of `make bench` with other suites: the same surroundings, options and results.
"""

import os
import sys
from types import SimpleNamespace

import limit_admitted
import limit_core
import limit_cost
import limit_shared
import ratelimit_report
import report
import session
import tools
from session import say

SUITES = {"core": limit_core.measure_core, "simulated": limit_core.measure_simulated, "cost": limit_cost.measure,
          "admitted": limit_admitted.measure, "shared": limit_shared.measure}

DOCS = os.path.join(tools.ROOT, "docs", "ratelimit.md")

FULL = SimpleNamespace(rounds=5, warm_s=1, cost_s=3, admitted_s=60, shared_rounds=3, shared_s=20, crash_s=10)
QUICK = SimpleNamespace(rounds=1, warm_s=1, cost_s=1, admitted_s=4, shared_rounds=1, shared_s=4, crash_s=6)


def main():
    options = session.parser(__doc__, SUITES, "docs/ratelimit.md")
    args = session.parsed(options, SUITES)
    results = session.merged(args.tables) if args.tables else measured(args)
    text = ratelimit_report.markdown(results)
    print(text)
    if args.write_docs and results["quick"]:
        sys.exit("bench: a quick run is nothing for the documentation")
    if args.write_docs:
        report.write_docs(DOCS, text, "make bench-ratelimit")
    session.end(results)


def measured(args):
    found = tools.Tools(args, needs_envoy=bool({"cost", "admitted"} & set(args.only)))

    limit_core.build(set(args.only))

    def measure(suite, work, times, _):
        return SUITES[suite](found, work, times, say)

    return session.measured(args, "ratelimit", SUITES, found, QUICK if args.quick else FULL, measure)


if __name__ == "__main__":
    main()
