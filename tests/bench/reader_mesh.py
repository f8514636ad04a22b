"""Two hosts with two workers each, the applications behind the second, and what a process holds of the machine.

Applications, callers and probes share one core, the hosts the other.
"""

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import ExitStack

import proxies
from processes import LOAD_CORE, PROXY_CORE, Process, free_port
from proxies import Evenkeel, Server
from tools import HERE

MIB = 1 << 20

# Of one big download or upload.
SIZE = 64 * MIB


class Script(Server):
    """A program of this directory with a control port."""

    def __init__(self, work, name, program, *args, before=(), prefix=(), after_all=False):
        self.control = free_port()
        self.prefix = list(prefix)
        priority = ["chrt", "--other", "0"] if after_all else []
        argv = [*prefix, *priority, sys.executable, os.path.join(HERE, program), *before, self.control, *args]
        self.process = Process(argv, LOAD_CORE, os.path.join(work, f"{name}.log"))

    def ready(self):
        try:
            self.state()
            return True
        except (OSError, ValueError, subprocess.CalledProcessError):
            return False

    def state(self):
        if self.prefix:
            said = subprocess.run([*self.prefix, sys.executable, "-c", ASK, str(self.control)], check=True,
                                  capture_output=True, text=True).stdout
            return json.loads(said)
        return json.loads(asked(self.control))


def asked(port):
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        said = b""
        while got := sock.recv(1 << 16):
            said += got
    return said


# The same for a control port in a network namespace of its own.
ASK = """
import socket, sys
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5)
while got := sock.recv(1 << 16):
    sys.stdout.write(got.decode())
"""


class App(Script):
    def __init__(self, work, name, address="127.0.0.1", prefix=()):
        self.port = free_port()
        self.address = f"{address}:{self.port}"
        super().__init__(work, name, "reader_app.py", before=(address, self.port), prefix=prefix)


class Callers(Script):
    """`groups`: how many of which mode, as reader_callers.py has it."""

    def __init__(self, work, version, method, path, targets, groups, size=SIZE, prefix=()):
        plan = {"version": version, "method": method, "path": path, "size": size, "targets": targets,
                "groups": groups}
        # Others do not wait for them where they share a core.
        super().__init__(work, f"callers-{free_port()}", "reader_callers.py", json.dumps(plan), prefix=prefix,
                         after_all=True)
        self.count = sum(count for _, count in groups)


class Host(Evenkeel):
    """Two workers, every default but what `policy` says; a listener for each of `wants`, `offers` by their service."""

    def __init__(self, tools, work, name, address, wants=(), offers=None, join=(), data=None, keys=None, policy=None,
                 prefix=()):
        directory = os.path.join(work, name)
        self.name, self.prefix = name, list(prefix)
        self.admin, self.catalog = free_port(), free_port()
        self.gossip, self.data = f"{address}:{free_port()}", data or f"{address}:{free_port()}"
        self.listeners = {service: f"127.0.0.1:{free_port()}" for service in wants}
        config = {
            "workers": 2,
            "node": {"name": name, "address": address, "data_dir": os.path.join(directory, "data")},
            "mesh": {"join": list(join), "data": {"listen": self.data},
                     "gossip": {"listen": self.gossip, **({"keys": keys} if keys else {})}},
            "outbound": {"listen": f"127.0.0.1:{free_port()}",
                         "listeners": [{"listen": at, "service": service} for service, at in self.listeners.items()]},
            "ratelimit": {"listen": f"127.0.0.1:{free_port()}"},
            "discovery": {"http": f"127.0.0.1:{self.catalog}", "dns": f"127.0.0.1:{free_port()}"},
            "admin": {"listen": f"127.0.0.1:{self.admin}"},
            "services": [{"name": service, "address": app.address, "protocol": "http"}
                         for service, app in (offers or {}).items()],
            **({"policy": policy} if policy else {}),
        }
        path = proxies.write(directory, "evenkeel.yaml", json.dumps(config, indent=1))
        self.process = Process([*prefix, tools.evenkeel, "run", "-c", path], PROXY_CORE,
                               os.path.join(directory, "log"))

    def ready(self):
        return self.get(self.admin, "/readyz") is not None

    def get(self, port, path):
        if not self.prefix:
            return self._get(port, path)
        done = subprocess.run([*self.prefix, "curl", "-sf", f"http://127.0.0.1:{port}{path}"], capture_output=True)
        return done.stdout if done.returncode == 0 else None

    def wait_for(self, services):
        """Until the mesh has told this host where they are."""
        def known():
            return all(json.loads(self.get(self.catalog, f"/v1/health/service/{service}?passing") or "[]")
                       for service in services)
        self.process.wait_until(known, f"it does not learn of {', '.join(services)}")

    def log(self):
        with open(self.process.log, errors="replace") as log:
            return log.read()


class Pair:
    """Host A, whose listeners the callers use, and host B with the applications."""

    def __init__(self, tools, work, services, policy=None):
        self.stack = ExitStack()
        try:
            enter = self.stack.enter_context
            self.apps = {service: enter(App(work, f"app-{service}")) for service in services}
            self.b = enter(Host(tools, work, "readers-b", "127.0.0.2", wants=services, offers=self.apps))
            self.a = enter(Host(tools, work, "readers-a", "127.0.0.1", wants=services, join=[self.b.gossip],
                                policy=policy))
            self.a.wait_for(services)
        except BaseException:
            self.stack.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()


def forget_peak(pid):
    with open(f"/proc/{pid}/clear_refs", "w") as file:
        file.write("5")


def resident(pid):
    """What it holds now and what it held at most since `forget_peak`, in MiB."""
    with open(f"/proc/{pid}/status") as status:
        kib = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status.read(), re.M))
    return {"now_mib": int(kib["VmRSS"]) / 1024, "peak_mib": int(kib["VmHWM"]) / 1024}


def in_sockets(tools, pid):
    """Bytes that wait in the kernel, in what this process has yet to read and its peers have yet to take, in MiB."""
    said = subprocess.run([tools.ss, "-tmnpOH"], check=True, capture_output=True, text=True).stdout
    mine = [line for line in said.splitlines() if f"pid={pid}," in line]
    return {"sockets": len(mine),
            "to_read_mib": sum(int(n) for line in mine for n in re.findall(r"skmem:\(r(\d+)", line)) / MIB,
            "to_send_mib": sum(int(n) for line in mine for n in re.findall(r",w(\d+)", line)) / MIB}


def machine_sockets():
    """The kernel's memory for TCP, of the whole machine, in MiB."""
    with open("/proc/net/sockstat") as file:
        return int(re.search(r"TCP:.* mem (\d+)", file.read())[1]) * 4096 / MIB
