"""Packets between hosts get lost, in each direction: what the caller sees of it.

100 GETs a second in an open loop, from a caller's host to a service that three others offer, one nginx each; 0, 1, 10
and 30 of a hundred packets between the hosts are lost, requests, answers, acknowledgements and gossip alike. Envoy has
no second proxy on the way: it dials the three nginx itself, from the caller's address, and meets the same loss.
"""

import time
from contextlib import ExitStack

import arms
from load import at_rate
from lossy_network import LossyNetwork, address
from processes import CpuClock
from proxies import Backend, Envoy, Evenkeel
from scenario import read, told
from stats import in_turn

RATE = 100
HOSTS = 3
SHARES = (0, 0.01, 0.1, 0.3)

# A request that waits for a repetition takes a connection; with fewer the load itself would wait.
CONNECTIONS = 256
# What is still on its way is not counted with the next run.
SETTLE_S = 1

POLICIES = {
    "evenkeel": None,
    "evenkeel, hedging enforced": arms.ENFORCED,
    "evenkeel, enforced, scout before each": arms.POLICIES["evenkeel, scout before each"],
}
# Per-try timeout in milliseconds, and retries; tried where a tenth is lost.
ENVOY_SETTINGS = ((2, 4), (10, 4), (50, 4))
TUNED_AT = 0.1


def measure(tools, work, times, say):
    with LossyNetwork(tools) as network:
        tries = []
        for setting in ENVOY_SETTINGS:
            seen = run(tools, work, network, arms.envoy(*setting), TUNED_AT, times, times.tuning_s)
            say(f"loss, tuning {seen['arm']}: {told(seen)}")
            tries.append(seen)
        best = min(tries, key=lambda seen: seen["p999_us"])["arm"]
        runs = []
        for number in range(times.rounds):
            for share in SHARES:
                for arm in in_turn((*POLICIES, best), number):
                    seen = run(tools, work, network, arm, share, times, times.loss_s)
                    seen["round"] = number
                    say(f"loss {share:.0%} {arm}: {told(seen)}")
                    runs.append(seen)
    return {"rate_per_sec": RATE, "runs": runs, "tuning": tries, "tuned": best, "tuned_at": TUNED_AT}


def run(tools, work, network, arm, share, times, seconds):
    network.lose(0)
    with ExitStack() as stack:
        servers = [stack.enter_context(Backend(tools, work, f"loss-{n}", counted=True, host=address(n + 2)))
                   for n in range(HOSTS)]
        under_test = start(stack, tools, work, arm, servers)
        network.lose(share)
        at_rate(tools, RATE, times.loss_warm_s, under_test.port, connections=CONNECTIONS)
        time.sleep(SETTLE_S)
        before, packets = read(servers), network.counted()
        clock = CpuClock(under_test.pid)
        seen = at_rate(tools, RATE, seconds, under_test.port, connections=CONNECTIONS)
        seen.update(clock.per_request(seen["sent"]))
        time.sleep(SETTLE_S)
        came, lost = (now - then for now, then in zip(network.counted(), packets))
        seen.update(arm=arm, loss=share, packets=came, lost=lost, extra=(read(servers) - before) / seen["sent"] - 1)
        return seen


def start(stack, tools, work, arm, servers):
    """The caller's proxy, with all that stands between it and the servers."""
    if arm not in POLICIES:
        per_try_ms, retries = arms.envoy_setting(arm)
        return stack.enter_context(Envoy(tools, work, servers, per_try_ms, retries, source=address(1)))
    hosts = [stack.enter_context(Evenkeel(tools, work, f"host-{n}", offers=[server], address=address(n + 2)))
             for n, server in enumerate(servers)]
    caller = stack.enter_context(Evenkeel(tools, work, "caller", join=[host.gossip for host in hosts],
                                          policy=POLICIES[arm], address=address(1)))
    caller.wait_for_instances(len(servers))
    return caller
