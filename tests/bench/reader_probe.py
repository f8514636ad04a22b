#!/usr/bin/env python3
"""The open loop of `make bench-readers`: small GETs and POSTs at a fixed rate, each timed from when it was due.

`reader_probe.py RATE SECONDS NAME=ADDRESS:PORT…`: the targets and the two methods take turns. One line of JSON at the
end, for each name and for all. `openload` asks no POSTs; else this is the same, at a rate that Python can hold.
"""

import itertools
import json
import math
import socket
import sys
import threading
import time
from http.client import HTTPException, HTTPResponse

CONNECTIONS = 32
ANSWERED_WITHIN_S = 10

BODY = b"0123456789abcdef" * 4


class Probe:
    def __init__(self, rate, seconds, targets):
        self.rate, self.count = rate, int(rate * seconds)
        self.targets = [(name, method) for name in targets for method in ("GET", "POST")]
        self.addresses = targets
        self.next = itertools.count()
        self.seen, self.late, self.errors = [], [], {}
        self.start = time.monotonic() + 0.1

    def run(self):
        threads = [threading.Thread(target=self.ask) for _ in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        both = {name: self.figures({name}) for name in self.addresses}
        return {**self.figures(set(self.addresses)), "late_p99_us": quantile(self.late, 0.99) * 1e6,
                "errors": self.errors, "by_name": both}

    def figures(self, names):
        good = [took for name, took in self.seen if name in names and took is not None]
        failed = sum(took is None for name, took in self.seen if name in names)
        return {"sent": len(good) + failed, "failed": failed,
                **{f"{key}_us": quantile(good, q) * 1e6 for key, q in
                   (("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("most", 1))}}

    def ask(self):
        connections = {}
        while (number := next(self.next)) < self.count:
            due = self.start + number / self.rate
            if (wait := due - time.monotonic()) > 0:
                time.sleep(wait)
                self.late.append(time.monotonic() - due)
            name, method = self.targets[number % len(self.targets)]
            try:
                if name not in connections:
                    connections[name] = socket.create_connection(self.addresses[name], ANSWERED_WITHIN_S)
                    connections[name].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                exchange(connections[name], method)
                self.seen.append((name, time.monotonic() - due))
            except (OSError, HTTPException) as error:
                connections.pop(name, None)
                self.seen.append((name, None))
                what = str(error) or type(error).__name__
                self.errors[what] = self.errors.get(what, 0) + 1


def exchange(sock, method):
    body = BODY if method == "POST" else b""
    length = f"content-length: {len(body)}\r\n" if body else ""
    sock.sendall(f"{method} / HTTP/1.1\r\nhost: probe\r\n{length}\r\n".encode() + body)
    answer = HTTPResponse(sock, method=method)
    answer.begin()
    answer.read()
    if answer.status != 200:
        raise HTTPException(f"status {answer.status}")


def quantile(values, q):
    values = sorted(values)
    return values[min(math.ceil(q * len(values)), len(values)) - 1] if values else 0.0


if __name__ == "__main__":
    asked = {}
    for pair in sys.argv[3:]:
        label, _, where = pair.partition("=")
        address, _, port = where.rpartition(":")
        asked[label] = (address, int(port))
    print(json.dumps(Probe(float(sys.argv[1]), float(sys.argv[2]), asked).run()))
