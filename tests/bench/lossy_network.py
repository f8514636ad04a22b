"""A network of a suite's own, in which packets between hosts get lost.

A network namespace that has nothing but loopback, entered by this harness itself, so that it reaches what it starts:
the machine's own rules are not touched, and everything is gone with the last process in it. Hosts are addresses of
one network, `HOSTS`; what applications exchange over 127.0.0.1 is never lost. Needs root and iptables.

Congestion control is Reno, whatever the machine has: a namespace may not choose CUBIC, which does the same to so few
packets, and under BBR no connection counts as thin (`TCP_THIN_LINEAR_TIMEOUTS`), as that goes by the slow start's end.
"""

import ctypes
import os
import re
import subprocess

HOSTS = "127.0.1.0/24"

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


def address(number):
    """Of a host, from 1 on."""
    return f"127.0.1.{number}"


class LossyNetwork:
    """While it is entered, this harness and what it starts are in it. Only for the main thread."""

    def __init__(self, tools):
        self.tools = tools

    def __enter__(self):
        if os.geteuid() != 0:
            raise SystemExit("bench: packets can be dropped by root only: run it with sudo")
        self.machine = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            checked(LIBC.unshare(CLONE_NEWNET), "there can be no network namespace here")
        except SystemExit:
            os.close(self.machine)
            raise
        try:
            subprocess.run([self.tools.ip, "link", "set", "lo", "up"], check=True)
            with open("/proc/sys/net/ipv4/tcp_congestion_control", "w") as control:
                control.write("reno")
            self.lose(0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        checked(LIBC.setns(self.machine, CLONE_NEWNET), "no way back to the machine's network")
        os.close(self.machine)

    def lose(self, share):
        """From now on so many of the packets from a host to another, each for itself."""
        between = ["-A", "INPUT", "-s", HOSTS, "-d", HOSTS]
        self._iptables("-F", "INPUT")
        self._iptables(*between)  # counts
        if share:
            self._iptables(*between, "-m", "statistic", "--mode", "random", "--probability", f"{share:g}", "-j", "DROP")

    def counted(self):
        """Packets from a host to another since `lose`, and those of them that got lost."""
        said = self._iptables("-nvxL", "INPUT")
        counts = [int(count) for count in re.findall(rf"^\s*(\d+) .*{re.escape(HOSTS)}", said, re.M)]
        return counts[0], sum(counts[1:])

    def _iptables(self, *args):
        done = subprocess.run([self.tools.iptables, "-w", *args], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"bench: iptables {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout


def checked(result, what):
    if result:
        raise SystemExit(f"bench: {what}: {os.strerror(ctypes.get_errno())}")
