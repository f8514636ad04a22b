"""The arms of the tail's suites, by name: which proxy, and what it is told to do about the tail.

`envoy`'s is a name such as `envoy 2 ms, 4 retries`: its per-try timeout, after which it hedges, and how often.
"""

import re

from proxies import Envoy, Evenkeel, HAProxy, Nginx

ENFORCED = {"hedge": {"mode": "enforce"}}

# Nothing happens to its backends: what machine, load and proxy cost by themselves.
CONTROL = "evenkeel, no faults"

# What Evenkeel is told beyond its defaults.
POLICIES = {
    "evenkeel": ENFORCED,
    CONTROL: ENFORCED,
    "evenkeel, two hosts": ENFORCED,
    "evenkeel, scout before each": {**ENFORCED, "scout": {"mode": "before_each"}},
    "evenkeel, balance scout": {**ENFORCED, "balance": "scout"},
    "evenkeel, no hedging": {"hedge": {"mode": "off"}},
    "evenkeel, all off": {"hedge": {"mode": "off"}, "probation": False, "eject": {"consecutive": 0}},
}

HAPROXY = "haproxy leastconn"
NGINX = "nginx random two least_conn"
NGINX_IN_TURN = "nginx round robin"
ENVOY_PLAIN = "envoy LEAST_REQUEST"


def envoy(per_try_ms, retries):
    return f"envoy {per_try_ms:g} ms, {retries} retries"


def envoy_setting(arm):
    """What `envoy` made such a name of, as Envoy's configuration has it; nothing for another arm."""
    found = re.fullmatch(r"envoy ([\d.]+) ms, (\d+) retries", arm)
    return found and (f"{float(found[1]) / 1e3:.4f}s", int(found[2]))


def start(stack, tools, work, arm, servers):
    """The proxy of this arm in front of these servers, ready, until the stack is left."""
    if arm == HAPROXY:
        return stack.enter_context(HAProxy(tools, work, servers, "leastconn"))
    if arm == NGINX:
        return stack.enter_context(Nginx(tools, work, servers, "random two least_conn"))
    if arm == NGINX_IN_TURN:
        return stack.enter_context(Nginx(tools, work, servers, ""))
    if arm == ENVOY_PLAIN:
        return stack.enter_context(Envoy(tools, work, servers))
    hedging = envoy_setting(arm)
    if hedging:
        return stack.enter_context(Envoy(tools, work, servers, *hedging))
    policy = POLICIES[arm]
    scout = {"http": "/scout"} if "scout" in arm else None
    if arm != "evenkeel, two hosts":
        return stack.enter_context(Evenkeel(tools, work, "client", backends=servers, policy=policy, scout=scout))
    host = stack.enter_context(Evenkeel(tools, work, "host", offers=servers, address="127.0.0.2"))
    client = stack.enter_context(Evenkeel(tools, work, "client-of-host", join=[host.gossip], policy=policy))
    client.wait_for_instances(len(servers))
    return client
