"""What an attack costs a host: memory, processor time, descriptors, log, and whether /livez answers throughout."""

import http.client
import os
import re
import threading
import time

from processes import CpuClock

SAMPLE_S = 0.1
LIVEZ_WITHIN_S = 1.0


class Watch:
    """Of one host, while the block lasts; `seen` afterwards."""

    def __init__(self, host):
        self.host, self.over, self.seen = host, threading.Event(), None
        self.fds, self.missed, self.asked = 0, 0, 0
        self.threads = [threading.Thread(target=each, daemon=True) for each in (self._look, self._ask)]

    def __enter__(self):
        with open(f"/proc/{self.host.pid}/clear_refs", "w") as file:
            file.write("5")  # the peak begins anew
        self.before_kib = memory_kib(self.host.pid, "VmRSS")
        self.logged, self.access_logged = os.path.getsize(self.host.log), os.path.getsize(self.host.access_log)
        self.pauses = pauses(self.host)
        self.clock = CpuClock(self.host.pid)
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()
        alive = self.host.alive()
        peak_kib = memory_kib(self.host.pid, "VmHWM") if alive else 0
        self.seen = {"alive": alive, "rss_before_mib": self.before_kib / 1024, "rss_peak_mib": peak_kib / 1024,
                     "cpu_s": self.clock.per_request(1)["cpu_us"] / 1e6 if alive else None,
                     "log_bytes": os.path.getsize(self.host.log) - self.logged,
                     "access_log_bytes": os.path.getsize(self.host.access_log) - self.access_logged,
                     "fds_peak": self.fds, "pauses": pauses(self.host) - self.pauses, "livez_asked": self.asked,
                     "livez_missed": self.missed}

    def _look(self):
        while not self.over.wait(SAMPLE_S):
            self.fds = max(self.fds, descriptors(self.host.pid))

    def _ask(self):
        while not self.over.wait(SAMPLE_S):
            self.asked += 1
            self.missed += not livez(self.host.ip)


class Others:
    """How many cores other programs on the machine kept busy since this was made: neither the mesh nor the harness."""

    def __init__(self, mesh):
        self.ours = [process.pid for process in (*(host.process for host in mesh.hosts), *mesh.apps)]
        self.begin = self._read()

    def _read(self):
        with open("/proc/stat") as stat:
            fields = [int(field) for field in stat.readline().split()[1:8]]
        busy = (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
        # The harness itself, and its children that have ended: the good client and the attacker.
        return time.monotonic(), busy - sum(os.times()[:4]) - sum(map(cpu_s, self.ours))

    def cores(self):
        (at, others), (then, before) = self._read(), self.begin
        return max((others - before) / (at - then), 0.0)


def cpu_s(pid):
    """Processor time since its start; 0 of who is gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except FileNotFoundError:
        return 0.0


def livez(ip):
    """Asked as a program on the same host would, on a connection of its own."""
    connection = http.client.HTTPConnection(ip, 7119, timeout=LIVEZ_WITHIN_S, source_address=(ip, 0))
    begin = time.monotonic()
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200 and time.monotonic() - begin < LIVEZ_WITHIN_S
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def pauses(host):
    """How often one of its workers did nothing for more than 50 ms while it had requests, as the host counts it."""
    found = re.search(r"^evenkeel_own_pauses_total (\d+)", host.says("/metrics"), re.M)
    return int(found[1]) if found else 0


def descriptors(pid):
    """How many are open; 0 of who is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except FileNotFoundError:
        return 0


def memory_kib(pid, name):
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(rf"^{name}:\s+(\d+) kB", status.read(), re.M)[1])
