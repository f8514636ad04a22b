"""One limit of 500 a second over real Evenkeels, measured at the backend.

`steady`: three hosts under four times the limit. `step and crash`: five hosts of which three ask for all of it and two for
nothing, so that these have lent what they own; then the fourth begins to ask; then the root is killed, and in that moment
the fifth begins. Which host a request came through, nginx reads from its `Host`.
"""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from limits import busiest, resource
from load import at_rate
from proxies import Backend, Evenkeel

RATE, BURST = 500, 50
DEMAND = 2000

# A lease of Doorman clients, of whom there are none: it bounds how long a dead host's part is unused.
LEASE = {"lease": "1s", "refresh": "1s"}

# In which a rate is read.
WINDOW_S = 0.25


def measure(tools, work, times, say):
    runs, crashes = [], []
    for number in range(times.shared_rounds):
        run = steady(tools, work, times)
        say(f"shared, steady: {run['utilisation']:.1%} used, busiest second {run['busiest']}")
        runs.append({**run, "round": number})
        crash = step_and_crash(tools, work, times)
        say(f"shared, step: {ms(crash['step_ms'])}; crash: newcomer after {ms(crash['newcomer_ms'])}, "
            f"shared again after {ms(crash['again_ms'])}, busiest second {crash['busiest']}")
        crashes.append({**crash, "round": number})
    return {"rate_per_sec": RATE, "burst": BURST, "demand": DEMAND, "runs": runs, "crashes": crashes}


def ms(value):
    return "never" if value is None else f"{value:.0f} ms"


def hosts(stack, tools, work, count, server):
    limit = resource(RATE, BURST)
    limit["resources"][0].update(LEASE)
    started = []
    for number in range(1, count + 1):
        started.append(stack.enter_context(Evenkeel(
            tools, work, f"sharing-{number}", backends=[server], address=f"127.0.0.{number}", ratelimit=limit,
            join=[host.gossip for host in started[:2]])))
    for host in started:
        host.wait_for_roster(count)
    return started


def steady(tools, work, times):
    with ExitStack() as stack:
        server = stack.enter_context(Backend(tools, work, "shared", counted=True))
        ports = [host.port for host in hosts(stack, tools, work, 3, server)]
        at_rate(tools, DEMAND, 2 + times.warm_s, *ports, connections=24)
        before = server.requests()
        seen = at_rate(tools, DEMAND, times.shared_s, *ports, connections=24)
        came = [at for at, _ in server.arrivals()[before:]]
        # Over what it lasted at the backend: the load's start and end are not the limit's.
        lasted = came[-1] - came[0]
        return {"command": seen["command"], "late_p99_us": seen["late_p99_us"], "came": len(came),
                "utilisation": (len(came) - 1) / lasted / RATE, "busiest": busiest(came)}


def step_and_crash(tools, work, times):
    with ExitStack() as stack:
        server = stack.enter_context(Backend(tools, work, "crash", counted=True))
        sharing = hosts(stack, tools, work, 5, server)
        pool = stack.enter_context(ThreadPoolExecutor(3))
        # Whoever is root is among those that ask from the start.
        root_name = root_of(tools, sharing[0])
        sharing.sort(key=lambda host: host.name != root_name)
        root, late, newcomer = sharing[0], sharing[3], sharing[4]
        third = times.crash_s / 3
        greedy = pool.submit(at_rate, tools, DEMAND, times.crash_s + 3, *(host.port for host in sharing[:3]),
                             connections=24)
        time.sleep(3 + third)
        stepped = time.time()
        one_more = pool.submit(at_rate, tools, DEMAND / 4, times.crash_s * 2 / 3, late.port, connections=8)
        time.sleep(third)
        crashed = time.time()
        root.process.signal(signal.SIGKILL)
        last = pool.submit(at_rate, tools, DEMAND / 4, third, newcomer.port, connections=8)
        loads = [load.result() for load in (greedy, one_more, last)]
        came = server.arrivals()
        return {"late_p99_us": max(load["late_p99_us"] for load in loads),
                "step_ms": reached(of(came, late), stepped, 0.95 * RATE / 4),
                "newcomer_ms": first(of(came, newcomer), crashed),
                # Without what the dead host owned, which is nobody's for a while.
                "again_ms": reached([at for at, _ in came], crashed, 0.95 * RATE * 4 / 5, after_fall=True),
                "busiest": busiest([at for at, _ in came])}


def root_of(tools, host):
    """Of the resource: as soon as it is in use, it has one."""
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(at_rate, tools, RATE, 2, host.port, connections=4)
        while not (host.quotas()["resources"] or load.done()):
            time.sleep(0.05)
        resources = host.quotas()["resources"]
        load.result()
    if not resources:
        raise SystemExit("bench: no resource is in use under load")
    return resources[0]["root"]


def of(came, host):
    return [at for at, name in came if name == f"127.0.0.1:{host.port}"]


def first(times, since):
    later = [at for at in times if at >= since]
    return (later[0] - since) * 1e3 if later else None


def reached(times, since, rate, after_fall=False):
    """Milliseconds until the requests of a window, from its beginning on, come at this rate; the fall before it, where one is awaited."""
    def count(at):
        return sum(at <= time < at + WINDOW_S for time in times)
    steps = [since + n * 0.01 for n in range(1000)]
    enough = [count(at) >= rate * WINDOW_S for at in steps if times and at + WINDOW_S <= times[-1]]
    start = enough.index(False) if after_fall and False in enough else 0
    return next((n * 10.0 for n, is_enough in enumerate(enough) if n >= start and is_enough), None)
