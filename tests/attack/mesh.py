"""The mesh that is attacked: two hosts and two applications, on a network 127.0.N.0/24 of their own.

Host A (.1) has the good client beside it; host B (.2) has the applications. The good client asks for `good`, attackers
for `target`: two applications, so that a flood which is let through wears out its own. Keys as in production.
"""

import base64
import os
import secrets
import socket
import urllib.request
from functools import partial

from processes import Process, accepts

GOOD, TARGET = "good", "target"

NETS = range(1, 254)
CLAIM_PORT = 7999
APP_PORT = 8000

# All of the machine: who is attacked and who attacks share it as the kernel sees fit.
CORES = ",".join(map(str, sorted(os.sched_getaffinity(0))))

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def claimed_net():
    """A network that no test has: who binds this port in it owns it. The socket is to be kept."""
    for offset in NETS:
        net = 1 + (os.getpid() + offset) % len(NETS)
        claim = socket.socket()
        try:
            claim.bind((f"127.0.{net}.254", CLAIM_PORT))
            claim.listen()
            return net, claim
        except OSError:
            claim.close()
    raise SystemExit("attack: all networks 127.0.N.0/24 are taken by tests")


def address(net, last):
    return f"127.0.{net}.{last}"


class Host:
    """One `evenkeel run`; its process ends with the mesh."""

    def __init__(self, name, net, number, binary, work, key, services):
        self.name, self.ip = name, address(net, number)
        directory = os.path.join(work, name)
        os.makedirs(directory)
        config = os.path.join(directory, "evenkeel.yaml")
        with open(config, "w") as file:
            file.write(configuration(name, net, self.ip, key, services, directory))
        self.log, self.access_log = (os.path.join(directory, name) for name in ("log", "access-log"))
        # The program's own log is on standard error, the access log on standard output.
        apart = ["sh", "-c", 'out=$1; shift; exec "$@" >"$out"', "sh", self.access_log]
        self.process = Process([*apart, binary, "run", "-c", config], CORES, self.log)

    @property
    def pid(self):
        return self.process.pid

    def alive(self):
        return self.process.child.poll() is None

    def says(self, path):
        """The body of the admin's answer; empty while there is none."""
        try:
            with DIRECT.open(f"http://{self.ip}:7119{path}", timeout=2) as answer:
                return answer.read().decode()
        except OSError:
            return ""


    def can_reach(self, service):
        """Does a request get there and back?"""
        request = urllib.request.Request(f"http://{self.ip}:7080/", headers={"Host": service})
        try:
            with DIRECT.open(request, timeout=2):
                return True
        except OSError:
            return False


class Mesh:
    """Started and ready when entered; gone when left."""

    def __init__(self, net, binary, testapp, work):
        self.net = net
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        ports = {GOOD: address(net, 100), TARGET: address(net, 101)}
        self.apps = [Process([testapp, f"{ip}:{APP_PORT}", name], CORES, os.path.join(work, name))
                     for name, ip in ports.items()]
        services = ", ".join(f'{{name: {name}, address: "{ip}:{APP_PORT}"}}' for name, ip in ports.items())
        self.a = Host("a", net, 1, binary, work, key, "")
        self.b = Host("b", net, 2, binary, work, key, f"services: [{services}]")
        self.hosts = (self.a, self.b)

    def __enter__(self):
        try:
            for app, ip in zip(self.apps, (100, 101)):
                app.wait_until(partial(accepts, APP_PORT, address(self.net, ip)), "it accepts nothing")
            for host in self.hosts:
                host.process.wait_until(partial(host.says, "/readyz"), "/readyz does not say so")
            for service in (GOOD, TARGET):
                self.a.process.wait_until(partial(self.a.can_reach, service), f"it cannot reach {service}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in (self.a.process, self.b.process, *self.apps):
            process.end()


def configuration(name, net, ip, key, services, directory):
    return f"""
node: {{name: host-{name}, address: {ip}, data_dir: "{directory}/data"}}
workers: 2
mesh:
  name: attacked
  join: ["{address(net, 1)}:7111", "{address(net, 2)}:7111"]
  gossip: {{listen: "{ip}:7111", keys: ["{key}"]}}
  data: {{listen: "{ip}:7110"}}
discovery: {{http: "{ip}:8500", dns: "{ip}:8600"}}
admin: {{listen: "{ip}:7119"}}
outbound: {{listen: "{ip}:7080"}}
ratelimit:
  listen: "{ip}:7113"
  resources: [{{match: "*", capacity: 1000, per: 1s}}]
{services}
"""
