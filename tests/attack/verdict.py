"""The limits that every attack is held to, and the table."""

P99_TIMES_MAX = 5
P99_MS_MAX = 50
RSS_GROWTH_MIB_MAX = 256
LOG_BYTES_MAX = 200 * 1024
# Of the machine, to other programs: beyond it the good client's times say nothing of the mesh.
OTHERS_CORES_MAX = 0.3

HEAD = ("attack", "sent", "p50 ms", "p99 ms", "max ms", "failed", "memory +MiB", "CPU s", "log KiB",
        "access log KiB", "descriptors", "/livez missed", "others' cores", "")


def judge(run):
    """Adds what did not hold, and what could not be judged."""
    late = lateness(run)
    busy = run.get("others_cores", 0) > OTHERS_CORES_MAX
    run["felt"] = failures(run) + ([] if busy else late)
    run["broken"] = run["felt"] + cost(run)
    run["unjudged"] = late if busy else []
    return run


def verdict(run):
    return "**broken**" if run["broken"] else "not judged" if run["unjudged"] else "held"


def failures(run):
    """Of the good client's requests, in words with the figures."""
    client = run["client"]
    return [f"{client['failed']} of the good client's requests failed: {client['errors']}"] if client["failed"] else []


def lateness(run):
    """Answers to the good client and of /livez that came too late."""
    said, hosts = [], run["hosts"].items()
    p99, limit = run["client"]["p99_ms"], max(P99_TIMES_MAX * run["quiet_p99_ms"], P99_MS_MAX)
    if p99 is None or p99 > limit:
        paused = "".join(f", {host['pauses']} pauses of a worker on {name}" for name, host in hosts if "pauses" in host)
        said.append(f"the good client's p99 is {ms(p99)} ms, above {limit:.0f}{paused}")
    for name, host in hosts:
        if host["livez_missed"]:
            said.append(f"host {name}'s /livez did not answer {host['livez_missed']} of {host['livez_asked']} times")
    return said


def cost(run):
    """What it cost a host beyond the limits."""
    said = []
    for name, host in run["hosts"].items():
        growth = host["rss_peak_mib"] - host["rss_before_mib"]
        if not host["alive"]:
            said.append(f"host {name} ended")
        if growth > RSS_GROWTH_MIB_MAX:
            said.append(f"host {name} grew by {growth:.0f} MiB, above {RSS_GROWTH_MIB_MAX}")
        if host["log_bytes"] > LOG_BYTES_MAX:
            said.append(f"host {name} logged {host['log_bytes'] / 1024:.0f} KiB, above {LOG_BYTES_MAX // 1024}")
    if "error" in run["attacker"]:
        said.append(f"the attacker broke off: {run['attacker']['error']}")
    return said


def row(run):
    client, sent, hosts = run["client"], run["attacker"], list(run["hosts"].values())

    def both(show):
        return " / ".join(show(host) for host in hosts)
    volume = f"{sent.get('sent_bytes', 0) / 1e6:.1f} MB, {sent.get('opened', 0)} conn."
    return [run["attack"], volume, ms(client["p50_ms"]), ms(client["p99_ms"]), ms(client["max_ms"]),
            str(client["failed"]), both(lambda host: f"{max(host['rss_peak_mib'] - host['rss_before_mib'], 0):.0f}"),
            both(lambda host: "" if host["cpu_s"] is None else f"{host['cpu_s']:.1f}"),
            both(lambda host: f"{host['log_bytes'] / 1024:.0f}"),
            both(lambda host: f"{host['access_log_bytes'] / 1024:.0f}"),
            both(lambda host: str(host["fds_peak"])), both(lambda host: str(host["livez_missed"])),
            f"{run['others_cores']:.1f}" if "others_cores" in run else "", verdict(run)]


def line(run):
    """A row for the terminal."""
    widths = (44, 22, 6, 7, 7, 5, 9, 9, 8, 8, 12, 7, 4, 0)
    return " ".join(cell.ljust(width) if n == 0 else cell.rjust(width)
                    for n, (cell, width) in enumerate(zip(row(run), widths)))


def ms(value):
    return "none" if value is None else f"{value:.1f}"
