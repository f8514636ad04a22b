"""Which attacks are tried where: the address, where they come from, and what a request looks like there.

Everything follows from the network's number, so that an attacker in a process of its own finds the same.
"""

import urllib.request
from types import SimpleNamespace

import control
import dns
import frames as h2
import gossip
import http1
import http2
from mesh import DIRECT, TARGET, address

# Long enough that a reader who stops is felt, short enough that the application can hold thousands.
LONG = "/?bytes=200000"


class Family:
    """Attacks on one address: `port` of host number `host`, from the addresses with these last numbers."""

    def __init__(self, name, attacks, host, port, sources, place, about):
        self.name, self.attacks, self.about = name, attacks, about
        self.host, self.port, self.sources, self.place = host, port, sources, place

    def target(self, net):
        return (address(net, self.host), self.port)

    def attackers(self, net):
        return [address(net, last) for last in self.sources]


def http1_place(_):
    return SimpleNamespace(host=TARGET, large=LONG, upload="/hang", hang="/hang")


def http2_place(more=()):
    def block(method, path):
        return h2.block(method, TARGET.encode(), path, more)
    return lambda _: SimpleNamespace(small=block(b"GET", b"/"), large=block(b"GET", LONG.encode()),
                                     hang=block(b"GET", b"/hang"), upload=block(b"POST", b"/hang"),
                                     hang_upload=block(b"POST", b"/echo"))


def leases_place(net):
    more = ((b"content-type", b"application/grpc"), (b"te", b"trailers"))
    call = h2.block(b"POST", address(net, 1).encode(), b"/doorman.Capacity/Discovery", more)
    return SimpleNamespace(small=call, large=call, hang=call, upload=call, hang_upload=call)


def discovery_place(net):
    host = f"{address(net, 1)}:8500"
    path = f"/v1/health/service/{TARGET}"
    with DIRECT.open(urllib.request.Request(f"http://{host}{path}"), timeout=5) as answer:
        index = answer.headers["X-Consul-Index"]
    return SimpleNamespace(host=host, long=path, put="/v1/agent/service/register",
                           parked=f"{path}?index={index}&wait=60s")


def admin_place(net):
    return SimpleNamespace(host=f"{address(net, 1)}:7119", long="/metrics", put="/v1/drain")


def dns_place(_):
    return SimpleNamespace(name=f"{TARGET}.service.mesh".encode())


def no_place(_):
    return None


MESH_HEAD = ((b"evenkeel-service", TARGET.encode()), (b"evenkeel-instance", TARGET.encode()))

A, B = 1, 2
LOCAL, STRANGERS = (1,), (50, 51, 52, 53)

FAMILIES = (
    Family("http1", http1.ATTACKS, A, 7080, LOCAL, http1_place, "HTTP/1.1 on the proxy's port"),
    Family("http2", http2.ATTACKS, A, 7080, LOCAL, http2_place(), "HTTP/2 on the proxy's port"),
    Family("mesh-member", http2.ATTACKS, B, 7110, (A,), http2_place(MESH_HEAD),
           "HTTP/2 on the mesh port, from a member's address"),
    Family("mesh-stranger", http2.ATTACKS, B, 7110, STRANGERS, http2_place(MESH_HEAD),
           "HTTP/2 on the mesh port, from addresses of no member"),
    Family("leases", http2.ATTACKS, A, 7113, LOCAL, leases_place, "HTTP/2 on the port for leases"),
    Family("gossip", gossip.ATTACKS, B, 7111, STRANGERS, no_place, "the port of gossip, TCP and UDP"),
    Family("scouts", gossip.SCOUT_ATTACKS, B, 7110, STRANGERS, no_place, "the port of scouts, UDP"),
    Family("discovery", control.DISCOVERY_ATTACKS, A, 8500, LOCAL, discovery_place, "look-ups over HTTP"),
    Family("admin", control.ATTACKS, A, 7119, LOCAL, admin_place, "the admin listener"),
    Family("dns", dns.ATTACKS, A, 8600, LOCAL, dns_place, "look-ups by DNS, UDP and TCP"),
)


def named(name):
    """The family and the attack of `FAMILY/ATTACK`."""
    family, _, attack = name.partition("/")
    for one in FAMILIES:
        for function in one.attacks:
            if (one.name, function.__name__) == (family, attack):
                return one, function
    raise SystemExit(f"attack: there is no `{name}`: see --list")
