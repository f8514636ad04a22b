"""Attacks on the listeners of the control side: look-ups over HTTP and admin.

`place.long` is the path of a long answer that costs something to make, `place.parked` of a query that waits, or None.
"""

from http1 import beginning, request


def idle_connections(storm, place):
    """Connections that say nothing."""
    storm.connections(1000)


def slow_heads(storm, place):
    """Heads that grow by a line every half second."""
    storm.connections(600, beginning(place), b"X-A: b\r\n", every_s=0.5)


def slow_bodies(storm, place):
    """Bodies that grow by a byte every half second."""
    storm.connections(600, request(place, "PUT", place.put, "Content-Length: 100000\r\n"), b"x", every_s=0.5)


def slow_readers(storm, place):
    """Answers that nobody reads."""
    storm.connections(600, request(place, path=place.long) * 50, reads=False)


def parked_queries(storm, place):
    """Queries that wait for a change for a minute."""
    storm.connections(1000, request(place, path=place.parked))


def large_bodies(storm, place):
    """Bodies of a gigabyte."""
    storm.connections(32, request(place, "PUT", place.put, "Content-Length: 1000000000\r\n"), b" " * 65536)


def endless_chunks(storm, place):
    """Bodies without a length and without an end."""
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    storm.connections(32, request(place, "PUT", place.put, "Transfer-Encoding: chunked\r\n"), chunk)


def header_flood(storm, place):
    """Heads without an end."""
    storm.connections(32, beginning(place), b"X-A: b\r\n" * 4000)


def pipelining_flood(storm, place):
    """Questions with a long answer, one behind the other."""
    storm.connections(8, b"", request(place, path=place.long) * 10)


def connection_flood(storm, place):
    """Connections, closed as soon as they are open."""
    storm.connections(64, b"G", at_close=True)


def garbage(storm, place):
    """What is no HTTP."""
    storm.connections(64, bytes(range(1, 256)) * 16, at_close=True)


ATTACKS = (idle_connections, slow_heads, slow_bodies, slow_readers, large_bodies, endless_chunks, header_flood,
           pipelining_flood, connection_flood, garbage)

DISCOVERY_ATTACKS = (*ATTACKS, parked_queries)
