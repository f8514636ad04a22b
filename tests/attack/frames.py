"""HTTP/2 frames as bytes (RFC 9113), and as much of HPACK (RFC 7541) as an attack needs.

No library: what is sent here is what a library would refuse to send.
"""

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 0x1, 0x1, 0x4, 0x8

HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 0x1, 0x4, 0x5

CANCEL = 0x8
WINDOW_LIMIT = (1 << 31) - 1


def frame(kind, flags=0, stream=0, payload=b"", claimed=None):
    """`claimed`: a length that is not the payload's."""
    length = len(payload) if claimed is None else claimed
    return struct.pack(">BHBBI", length >> 16, length & 0xFFFF, kind, flags, stream) + payload


def settings(values=()):
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", *pair) for pair in dict(values).items()))


def hello(values=()):
    """A client's first bytes."""
    return PREFACE + settings(values)


def headers(stream, block, end_stream=True, end_headers=True):
    return frame(HEADERS, (END_STREAM if end_stream else 0) | (END_HEADERS if end_headers else 0), stream, block)


def data(stream, payload=b"", end_stream=False):
    return frame(DATA, END_STREAM if end_stream else 0, stream, payload)


def reset(stream, code=CANCEL):
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def window_update(stream, increment):
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def priority(stream, on, weight=15):
    return frame(PRIORITY, 0, stream, struct.pack(">IB", on, weight))


def ping(flags=0):
    return frame(PING, flags, 0, b"12345678")


def goaway(last=0, code=0, debug=b""):
    return frame(GOAWAY, 0, 0, struct.pack(">II", last, code) + debug)


def integer(value, bits, first):
    """RFC 7541, section 5.1: `first` are the bits before the prefix."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    value -= most
    out = bytearray([first | most])
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def string(text):
    return integer(len(text), 7, 0) + text


def field(name, value):
    """A literal that is not put into the dynamic table."""
    return b"\x00" + string(name) + string(value)


def indexed_field(name, value):
    """A literal that is."""
    return b"\x40" + string(name) + string(value)


def reference(index):
    return integer(index, 7, 0x80)


def table_size(size):
    return integer(size, 5, 0x20)


def block(method, authority, path, more=()):
    """A request's head."""
    pseudo = ((b":method", method), (b":scheme", b"http"), (b":authority", authority), (b":path", path))
    return b"".join(field(name, value) for name, value in (*pseudo, *more))


def streams(turn, each):
    """The stream numbers of the turn's `each` requests, when every turn has as many; stream 1 is the opening's."""
    first = 3 + 2 * each * turn
    return range(first, first + 2 * each, 2)
