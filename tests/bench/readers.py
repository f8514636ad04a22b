#!/usr/bin/env python3
"""`make bench-readers`: what readers that stall do to others, dead peers, and streams over long paths; 25 minutes.

The harness of `make bench` with other suites: the same surroundings, options and results. `gone` needs root, for
network namespaces.
"""

import os
import sys
from types import SimpleNamespace

import reader_paths
import reader_pauses
import reader_stalls
import readers_report
import report
import session
import tools
from session import say

SUITES = {"downloads": reader_stalls.downloads, "uploads": reader_stalls.uploads, "pauses": reader_pauses.pauses,
          "gone": reader_pauses.gone, "paths": reader_paths.paths}

DOCS = os.path.join(tools.ROOT, "docs", "flow-control.md")

# The program that is run, and the Debian package that it comes from.
DEBIAN = {"taskset": "util-linux", "ss": "iproute2", "ip": "iproute2", "curl": "curl"}

FULL = SimpleNamespace(rounds=3, stall_warm_s=1, stall_s=6, stall_settle_s=2, path_mib=256)
QUICK = SimpleNamespace(rounds=1, stall_warm_s=1, stall_s=3, stall_settle_s=2, path_mib=128)


def main():
    options = session.parser(__doc__, SUITES, "docs/flow-control.md")
    options.add_argument("--pause", type=float, default=240, help="seconds for which a reader pauses (240)")
    args = session.parsed(options, SUITES)
    results = session.merged(args.tables) if args.tables else measured(args)
    text = readers_report.markdown(results)
    print(text)
    if args.write_docs and results["quick"]:
        sys.exit("bench: a quick run is nothing for the documentation")
    if args.write_docs:
        report.write_docs(DOCS, text, "make bench-readers")
    session.end(results)


def measured(args):
    found = tools.Tools(args, needs_envoy=False, debian=DEBIAN, needs_openload=False)
    times = SimpleNamespace(**vars(QUICK if args.quick else FULL), pause_s=args.pause)

    def measure(suite, work, times, _):
        return SUITES[suite](found, work, times, say)

    return session.measured(args, "readers", SUITES, found, times, measure)


if __name__ == "__main__":
    main()
