"""A Doorman client that shares no file with Evenkeel: messages are put together byte by byte from the protocol's table.

Usage: doorman.py TARGET [TARGET2]. Prints one JSON object: what each call was answered. A lease as the client got it from TARGET is refreshed at
TARGET, and another client asks TARGET2 (the same by default) for all there is.
"""

import json
import struct
import sys

import grpc

target = sys.argv[1]
other = sys.argv[2] if len(sys.argv) > 2 else target


# The wire: a field is a tag (number, kind) and a value; kinds 0 varint, 1 double, 2 length and bytes.


def varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number, value):
    if isinstance(value, bool) or isinstance(value, int):
        return varint(number << 3) + varint(int(value))
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(*fields):
    return b"".join(field(number, value) for number, value in fields if value is not None)


def fields(data):
    """Of a message: its values by number, in order."""
    found = {}
    at = 0

    def next_varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = next_varint()
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value = next_varint()
            value -= (1 << 64) if value >> 63 else 0
        elif kind == 1:
            (value,) = struct.unpack_from("<d", data, at)
            at += 8
        elif kind == 2:
            length = next_varint()
            value = data[at : at + length]
            at += length
        else:
            raise ValueError(f"kind {kind} of field {number}")
        found.setdefault(number, []).append(value)
    return found


# The table.


def lease(expiry_time, refresh_interval, capacity):
    return message((1, expiry_time), (2, refresh_interval), (3, capacity))


def resource(resource_id, wants, priority=0, has=None):
    return message((1, resource_id), (2, priority), (3, has), (4, wants))


def get_capacity(client_id, *resources):
    return message((1, client_id), *((2, r) for r in resources))


def get_server_capacity(server_id, resource_id, *bands):
    bands = [message((1, priority), (2, clients), (3, wants)) for priority, clients, wants in bands]
    return message((1, server_id), (2, message((1, resource_id), *((3, band) for band in bands))))


def release(client_id, *resource_ids):
    return message((1, client_id), *((2, r) for r in resource_ids))


def read_lease(data):
    lease = fields(data)
    return {"expiry_time": lease[1][0], "refresh_interval": lease[2][0], "capacity": lease[3][0]}


def read_capacity(data, safe_field=3):
    answer = fields(data)
    responses = [fields(r) for r in answer.get(1, [])]
    return {
        "mastership": 2 in answer,
        "leases": {r[1][0].decode(): read_lease(r[2][0]) | {"safe": r[safe_field][0]} for r in responses},
    }


# The calls.

channels = {to: grpc.insecure_channel(to, options=[("grpc.enable_http_proxy", 0)]) for to in {target, other}}


def call(method, request, to=target):
    return channels[to].unary_unary(f"/{method}")(request, timeout=20)


def status(method, request):
    try:
        call(method, request)
        return {"code": "OK", "details": ""}
    except grpc.RpcError as error:
        return {"code": error.code().name, "details": error.details()}


def get(client, *resources, to=target):
    return read_capacity(call("doorman.Capacity/GetCapacity", get_capacity(client, *resources), to))


def refused(request):
    return status("doorman.Capacity/GetCapacity", request)


def services(version):
    reflect = channels[target].stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
    for answer in reflect(iter([message((7, ""))]), timeout=20):
        return sorted(fields(s)[1][0].decode() for s in fields(fields(answer)[6][0])[1])


discovery = fields(call("doorman.Capacity/Discovery", b""))
first = get("a", resource("db", 10.0), resource("minute", 1000.0))
held = first["leases"]["db"]
refreshed = get(
    "a", resource("db", 20.0, has=lease(held["expiry_time"], held["refresh_interval"], held["capacity"]))
)
greedy = get("b", resource("db", 1e6), to=other)
released = fields(call("doorman.Capacity/ReleaseCapacity", release("a", "db", "minute")))
call("doorman.Capacity/ReleaseCapacity", release("b", "db"), to=other)
server = fields(call("doorman.Capacity/GetServerCapacity", get_server_capacity("s", "jobs", (0, 3, 2.0), (1, 1, 1.0))))
server = fields(server[1][0])

print(
    json.dumps(
        {
            "discovery": {"address": fields(discovery[1][0])[1][0].decode(), "is_master": discovery[2][0]},
            "first": first,
            "refreshed": refreshed,
            "greedy": greedy,
            "released": sorted(released),
            "server": read_lease(server[2][0]) | {"kind": fields(server[3][0])[1][0], "safe": server[4][0]},
            "nan": refused(get_capacity("a", resource("db", float("nan")))),
            "negative": refused(get_capacity("a", resource("db", -1.0))),
            "without_wants": refused(get_capacity("a", resource("db", None))),
            "without_client": refused(message((2, resource("db", 1.0)))),
            "unknown": refused(get_capacity("a", resource("nosuch", 1.0))),
            "no_clients": status(
                "doorman.Capacity/GetServerCapacity", get_server_capacity("s", "jobs", (0, 0, 1.0))
            ),
            "not_a_message": refused(b"\xff\xff"),
            "health": fields(call("grpc.health.v1.Health/Check", message((1, "doorman.Capacity"))))[1][0],
            "services": services("v1"),
            "services_before_v1": services("v1alpha"),
        }
    )
)
