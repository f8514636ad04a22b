"""Attacks on the ports of gossip (TCP and UDP) and of scouts (UDP), by one who has no key."""

import os
import struct

MAGIC = b"EVKL"
FRAME_CLAIM = struct.pack(">I", 0xFFFFFFFF)
LARGE_CLAIM = struct.pack(">I", 16 << 20)


def idle_connections(storm, place):
    """Connections that say nothing."""
    storm.connections(1000)


def byte_a_second(storm, place):
    """Frames of a megabyte, a byte a second."""
    storm.connections(500, struct.pack(">I", 1 << 20), b"x", every_s=1.0)


def huge_claims(storm, place):
    """Frames that claim 4 GiB."""
    storm.connections(64, FRAME_CLAIM, bytes(65536))


def large_frames(storm, place):
    """Frames of 16 MiB, sent as fast as they are read."""
    storm.connections(32, LARGE_CLAIM, bytes(65536))


def garbage_frames(storm, place):
    """Whole frames that no key opens."""
    frame = struct.pack(">I", 1024) + MAGIC + os.urandom(1020)
    storm.connections(32, frame)


def connection_flood(storm, place):
    """Connections, closed as soon as they are open."""
    storm.connections(64, b"\0", at_close=True)


def garbage_datagrams(storm, place):
    """Datagrams of random bytes."""
    noise = [os.urandom(1200) for _ in range(64)]
    storm.datagrams(lambda number: noise[number % 64])


def disguised_datagrams(storm, place):
    """Datagrams that begin as ours do."""
    noise = [MAGIC + bytes([1]) + os.urandom(1100) for _ in range(64)]
    storm.datagrams(lambda number: noise[number % 64])


def empty_datagrams(storm, place):
    """Datagrams of no bytes."""
    storm.datagrams(lambda _: b"")


def large_datagrams(storm, place):
    """Datagrams as large as there are."""
    noise = os.urandom(65_000)
    storm.datagrams(lambda _: noise)


ATTACKS = (idle_connections, byte_a_second, huge_claims, large_frames, garbage_frames, connection_flood,
           garbage_datagrams, disguised_datagrams, empty_datagrams, large_datagrams)

SCOUT_ATTACKS = (garbage_datagrams, disguised_datagrams, empty_datagrams, large_datagrams)
