"""Starts and ends processes, each on its core, and reads what the kernel counted for them.

The proxy under test has a core of its own; the load, the backends and this harness share the other.
Every process leads a process group of its own, so that one signal reaches its children too, and ends with the harness.
"""

import atexit
import os
import random
import re
import signal
import socket
import subprocess
import time

PROXY_CORE = 0
LOAD_CORE = 1

READY_WITHIN_S = 20.0


class Process:
    """One process and its children; the owner calls `end`."""

    def __init__(self, argv, core, log):
        self.argv = ["taskset", "-c", str(core), *map(str, argv)]
        self.log = log
        with open(log, "wb") as out:
            self.child = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                          start_new_session=True)
        _alive.add(self)

    @property
    def pid(self):
        return self.child.pid

    def end(self):
        if self.child.poll() is None:
            for number in (signal.SIGCONT, signal.SIGKILL):
                self.signal(number)
        self.child.wait()
        _alive.discard(self)

    def signal(self, number):
        """To the whole group."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass

    def wait_until(self, ready, what):
        """Waits for a condition; says what the process said when it does not come."""
        deadline = time.monotonic() + READY_WITHIN_S
        while not ready():
            if self.child.poll() is not None or time.monotonic() > deadline:
                with open(self.log, errors="replace") as log:
                    said = log.read()[-2000:]
                raise SystemExit(f"bench: {self.argv[3]} is not ready ({what}):\n{said}")
            time.sleep(0.02)
        return self


_alive = set()


@atexit.register
def end_all():
    """Whatever ended this harness, nothing that it started stays."""
    for process in list(_alive):
        process.end()


def accepts(port, address="127.0.0.1"):
    """Does anybody listen there?"""
    try:
        socket.create_connection((address, port), timeout=1).close()
        return True
    except OSError:
        return False


_given = set()


def free_port():
    """A port that neither TCP nor UDP uses, outside the range from which the kernel takes its own."""
    while True:
        port = random.randint(20000, 31999)
        if port in _given:
            continue
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    probe.bind(("0.0.0.0", port))
        except OSError:
            continue
        _given.add(port)
        return port


class CpuClock:
    """Processor time of a process with all its threads, living and gone, since this was made."""

    def __init__(self, pid):
        self.pid = pid
        self.start = self._read()

    def _read(self):
        # Linux's process CPU clock of any pid (MAKE_PROCESS_CPUCLOCK): exact to the nanosecond.
        total = time.clock_gettime_ns((~self.pid << 3) | 2)
        with open(f"/proc/{self.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return total, int(fields[11]), int(fields[12])

    def per_request(self, requests):
        """Microseconds a request. The split into user and system is the kernel's accounting in ticks of 10 ms."""
        total, user, system = (now - then for now, then in zip(self._read(), self.start))
        total_us = total / 1000 / max(requests, 1)
        share = user / (user + system) if user + system else 0.0
        return {"cpu_us": total_us, "user_us": total_us * share, "system_us": total_us * (1 - share)}


def busy_cores(seconds):
    """How many cores were at work, while this harness did nothing: others on the machine."""
    def idle():
        with open("/proc/stat") as stat:
            fields = [int(field) for field in stat.readline().split()[1:]]
        return fields[3] + fields[4], sum(fields[:8])
    before = idle()
    time.sleep(seconds)
    idled, all_of_it = (now - then for now, then in zip(idle(), before))
    return (1 - idled / max(all_of_it, 1)) * os.cpu_count()


def resident_mib(pid):
    """What a process holds of the machine's memory."""
    with open(f"/proc/{pid}/status") as status:
        kib = {name: int(value) for name, value in re.findall(r"^(Rss\w+):\s+(\d+) kB", status.read(), re.M)}
    anon, file = kib["RssAnon"] / 1024, kib["RssFile"] / 1024
    return {"anon_mib": anon, "file_mib": file, "resident_mib": anon + file}


def traced(pid):
    """Are all threads of a process under a tracer?"""
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/status") as status:
            if re.search(r"^TracerPid:\s+0$", status.read(), re.M):
                return False
    return True
