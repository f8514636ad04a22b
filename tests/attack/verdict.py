"""The limits that every attack is held to, and the table."""

P99_TIMES_MAX = 5
P99_MS_MAX = 50
RSS_GROWTH_MIB_MAX = 256
LOG_BYTES_MAX = 200 * 1024

HEAD = ("attack", "sent", "p50 ms", "p99 ms", "max ms", "failed", "memory +MiB", "CPU s", "log KiB",
        "access log KiB", "descriptors", "/livez missed", "others' cores", "")


def p99_limit_ms(quiet):
    return max(P99_TIMES_MAX * quiet["p99_ms"], P99_MS_MAX)


def felt(run, quiet):
    """What others felt beyond the limits, in words with its figures."""
    client, said, limit = run["client"], [], p99_limit_ms(quiet)
    if client["p99_ms"] is None or client["p99_ms"] > limit:
        paused = " and ".join(f"{host['pauses']} on {name}" for name, host in run["hosts"].items())
        said.append(f"the good client's p99 is {ms(client['p99_ms'])} ms, above {limit:.0f} "
                    f"(pauses of a worker: {paused})")
    if client["failed"]:
        said.append(f"{client['failed']} of the good client's requests failed: {client['errors']}")
    for name, host in run["hosts"].items():
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
            f"{run['others_cores']:.1f}" if "others_cores" in run else "", "**broken**" if run["broken"] else "held"]


def line(run):
    """A row for the terminal."""
    widths = (44, 22, 6, 7, 7, 5, 9, 9, 8, 8, 12, 7, 4, 0)
    return " ".join(cell.ljust(width) if n == 0 else cell.rjust(width)
                    for n, (cell, width) in enumerate(zip(row(run), widths)))


def ms(value):
    return "none" if value is None else f"{value:.1f}"
