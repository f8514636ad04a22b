"""One stream over a long path: `paths`.

A relay stands between host A and host B's mesh port: B publishes the relay's address and listens beside it. The plain
connection of the same run goes through the same relay to the same application. Both are read from the first byte on
and in the steady state, after `RAMP`: windows have to grow first, and the relay's two TCP connections do not.
"""

import json
import socket
import subprocess
import time
from contextlib import ExitStack
from http.client import HTTPResponse

from processes import free_port
from reader_app import MARK
from reader_mesh import App, Host, MIB, Script
from stats import in_turn

# A multiple of what the application marks.
RAMP = 4 * MARK
CHUNK = bytes(1 << 18)

# Round trip in seconds, and what the link carries each way in bytes a second (0: what the relay can).
PATHS = {"50 ms, 100 MB/s": (0.05, 100e6), "0.2 ms, 100 MB/s": (0.0002, 100e6), "50 ms, no limit": (0.05, 0),
         "no relay": None}
DIRECTIONS = ("download", "upload")


def paths(tools, work, times, say):
    runs = []
    for number in range(times.rounds):
        for path in in_turn(list(PATHS), number):
            for run in one(tools, work, times, PATHS[path]):
                run = {"path": path, "round": number, **run}
                say(f"paths, {path}, {run['direction']}: plain {run['plain']['steady'] / 1e6:.0f} MB/s, mesh "
                    f"{run['mesh']['steady'] / 1e6:.0f} MB/s ({run['share']:.0%}; whole {run['whole_share']:.0%})")
                runs.append(run)
    return {"ramp": RAMP, "size": times.path_mib * MIB, "runs": runs}


def one(tools, work, times, path):
    with ExitStack() as stack:
        app = stack.enter_context(App(work, "app-path"))
        data, plain = free_port(), free_port()
        listen = "127.0.0.3" if path else "127.0.0.2"
        b = stack.enter_context(Host(tools, work, "path-b", "127.0.0.2", offers={"big": app},
                                     data=f"{listen}:{data}"))
        direct = ("127.0.0.1", app.port)
        if path:
            round_trip_s, per_s = path
            plan = {"delay_s": round_trip_s / 2, "per_s": per_s,
                    "routes": [["127.0.0.2", data, "127.0.0.3", data, "127.0.0.1"],
                               ["127.0.0.2", plain, "127.0.0.1", app.port, "127.0.0.1"]]}
            stack.enter_context(Script(work, "relay", "reader_relay.py", json.dumps(plan)))
            direct = ("127.0.0.2", plain)
        a = stack.enter_context(Host(tools, work, "path-a", "127.0.0.1", wants=["big"], join=[b.gossip]))
        a.wait_for(["big"])
        address, _, port = a.listeners["big"].rpartition(":")
        ways = {"plain": direct, "mesh": (address, int(port))}
        size = times.path_mib * MIB
        found = []
        for direction, move in zip(DIRECTIONS, (download, upload)):
            seen = {way: move(where, size) for way, where in ways.items()}
            found.append({"direction": direction, **seen, "share": seen["mesh"]["steady"] / seen["plain"]["steady"],
                          "whole_share": seen["mesh"]["whole"] / seen["plain"]["whole"],
                          "connections": established(tools, b.data if not path else f"127.0.0.2:{data}")})
        return found


def established(tools, target):
    said = subprocess.run([tools.ss, "-tnHO", "state", "established", "dst", target], check=True,
                          capture_output=True, text=True).stdout
    return len(said.splitlines())


def download(where, size):
    """Bytes a second, from the request on and after the ramp."""
    with socket.create_connection(where, timeout=60) as sock:
        start = time.monotonic()
        sock.sendall(f"GET /bytes/{size} HTTP/1.1\r\nhost: reader\r\nconnection: close\r\n\r\n".encode())
        buffer, received, marks = bytearray(1 << 20), 0, []
        while received < size:
            count = sock.recv_into(buffer)
            if not count:
                raise SystemExit(f"bench: a download ended after {received} of {size} bytes")
            received += count
            if received // MARK > len(marks):
                marks.append(time.monotonic())
        return speeds(start, marks)


def upload(where, size):
    """Likewise, as the application says when what was there: what has been sent may wait anywhere."""
    with socket.create_connection(where, timeout=60) as sock:
        start = time.monotonic()
        sock.sendall(f"POST /sink HTTP/1.1\r\nhost: reader\r\ncontent-length: {size}\r\n"
                     "connection: close\r\n\r\n".encode())
        sent = 0
        while sent < size:
            sent += sock.send(CHUNK[:size - sent])
        answer = HTTPResponse(sock)
        answer.begin()
        if answer.status != 200:
            raise SystemExit(f"bench: an upload is answered with {answer.status}")
        return speeds(start, json.loads(answer.read()))


def speeds(start, marks):
    ramp, size = RAMP // MARK, len(marks) * MARK
    return {"whole": size / (marks[-1] - start), "steady": (size - RAMP) / (marks[-1] - marks[ramp - 1]),
            "ramp_s": marks[ramp - 1] - start}
