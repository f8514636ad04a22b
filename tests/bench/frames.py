"""As much of HTTP/2 (RFC 9113) as a caller needs that decides itself when to open a window."""

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 1
END_HEADERS = 4
INITIAL_WINDOW_SIZE = 4

FRAME_MAX = 16384
WINDOW_DEFAULT = 65535
WINDOW_MAX = (1 << 31) - 1


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def opening(window):
    """What a client sends first: its streams have this window, its connection the largest there is."""
    return (PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window))
            + window_update(0, WINDOW_MAX - WINDOW_DEFAULT))


def window_update(stream, by):
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", by))


def request(stream, method, authority, path, length=None):
    """The head of a request; it has a body when `length` says how long it is."""
    fields = [b"\x82" if method == "GET" else b"\x83", b"\x86", named(b"\x04", path), named(b"\x01", authority)]
    if length is not None:
        fields.append(named(b"\x0f\x0d", str(length)))
    flags = END_HEADERS | (END_STREAM if length is None else 0)
    return frame(HEADERS, flags, stream, b"".join(fields))


def named(index, value):
    """A field without indexing, its name from the static table (RFC 7541 §6.2.2)."""
    assert len(value) < 127
    return index + bytes([len(value)]) + value.encode()


def is_ok(block):
    """Whether a header block begins with `:status: 200` (index 8 of the static table)."""
    return block.lstrip(b"\x20\x3f")[:1] == b"\x88"


def split(received):
    """The frames that are whole, as (kind, flags, stream, payload); takes them out of the buffer."""
    frames, at = [], 0
    while len(received) - at >= 9:
        length = int.from_bytes(received[at:at + 3], "big")
        if len(received) - at < 9 + length:
            break
        kind, flags, stream = struct.unpack_from(">BBI", received, at + 3)
        frames.append((kind, flags, stream, bytes(received[at + 9:at + 9 + length])))
        at += 9 + length
    del received[:at]
    return frames
