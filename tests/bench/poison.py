"""One tenant's requests kill every backend that reads them: which other tenants notice?

Eight backends, shards of two: 28 possible shards, so the poison takes both backends of one 28th of the tenants and one
of the two of twelve 28ths, whose requests succeed at the second try. A tenant is hurt when two requests of its own
fail, some seconds apart. Tenants are many, so that the share means something; the poison is another tenant in every round.
The arm without shards has the same retry and the same poison.

No peer in this harness has shuffle shards, so the arms are Evenkeel's own.
"""

import http.client
import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from processes import LOAD_CORE, Process
from proxies import Evenkeel, Server, free_port
from stats import in_turn

BACKENDS = 8
SHARD = 2
SHARDS = BACKENDS * (BACKENDS - 1) // 2
TENANTS = 40 * SHARDS
POISON_TIMES = 10

# Requests of all tenants, in parallel, no faster than this: what is tried again stays within the retry budget.
WORKERS = 8
RATE = 400

REPEATED = {"retry": {"max": 1}, "hedge": {"mode": "off"}}
ARMS = {"evenkeel, shards of 2": {**REPEATED, "shard": {"key": "header:x-tenant", "size": SHARD}},
        "evenkeel, no shards": REPEATED}


class Mortal(Server):
    """A backend that ends with the first request of the tenant `poison…` that it reads."""

    def __init__(self, work, name):
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "poison_backend.py")
        self.process = Process([sys.executable, program, self.port], LOAD_CORE, os.path.join(work, f"{name}.log"))

    def alive(self):
        return self.process.child.poll() is None


def measure(tools, work, times, say):
    runs = []
    for number in range(times.rounds):
        for arm in in_turn(tuple(ARMS), number):
            seen = one(tools, work, arm, number)
            say(f"poison {arm}: {seen['dead']} of {BACKENDS} backends dead, {seen['hurt']} of {TENANTS} tenants hurt, "
                f"{seen['hurt_once']} once")
            runs.append(seen)
    return {"tenants": TENANTS, "shards": SHARDS, "runs": runs}


def one(tools, work, arm, number):
    with ExitStack() as stack:
        servers = [stack.enter_context(Mortal(work, f"mortal-{n}")) for n in range(BACKENDS)]
        proxy = stack.enter_context(Evenkeel(tools, work, "client", backends=servers, policy=ARMS[arm]))
        tenants = [f"tenant-{n}" for n in range(TENANTS)]
        before = failures(proxy.port, tenants)
        if before:
            raise SystemExit(f"bench: {len(before)} tenants failed before the poison: {before[:3]}")
        failures(proxy.port, [f"poison-{number}"] * POISON_TIMES)
        first, second = (dict(failures(proxy.port, tenants)) for _ in range(2))
        hurt = first.keys() & second.keys()
        return {"arm": arm, "round": number, "dead": sum(not server.alive() for server in servers),
                "hurt": len(hurt), "share": len(hurt) / TENANTS,
                # Those whose retry did not find the backend that lives.
                "hurt_once": len(first.keys() ^ second.keys()), "got": Counter(map(str, first.values())),
                "attempts": proxy.metric("evenkeel_attempts_total")}


def failures(port, tenants):
    """(tenant, what it got) of every request that did not end with 200; one for each tenant, at `RATE`."""
    start = time.monotonic()

    def some(worker):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        bad = []
        for number in range(worker, len(tenants), WORKERS):
            time.sleep(max(start + number / RATE - time.monotonic(), 0))
            got = ask(connection, tenants[number])
            if got != 200:
                bad.append((tenants[number], got))
        connection.close()
        return bad

    with ThreadPoolExecutor(WORKERS) as pool:
        return [one for bad in pool.map(some, range(WORKERS)) for one in bad]


def ask(connection, tenant):
    try:
        connection.request("GET", "/", headers={"x-tenant": tenant})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException) as error:
        connection.close()  # it connects again by itself
        return type(error).__name__
