"""Every kind of gRPC call through the mesh, no retries of its own. Usage: client.py TARGET AUTHORITY [COMMAND]

Prints one JSON object. Without COMMAND all kinds of calls; with one of `unary`, `slow:SECONDS:DEADLINE`, that call's status.
"""

import json
import queue
import sys

import grpc

target, authority = sys.argv[1:3]
command = sys.argv[3] if len(sys.argv) > 3 else ""
channel = grpc.insecure_channel(
    target, options=[("grpc.default_authority", authority), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
)
unary = channel.unary_unary("/test.Echo/Unary")


def status_of(call):
    try:
        call()
        return {"code": "OK", "details": "", "trailers": {}}
    except grpc.RpcError as error:
        trailers = {k: v for k, v in error.trailing_metadata() or () if not isinstance(v, bytes)}
        return {"code": error.code().name, "details": error.details(), "trailers": trailers}


def ping_pong():
    # Each ping is sent only once the pong before it has come: a proxy that collects would hang here.
    pings = queue.Queue()
    answers = []
    pings.put(b"0")
    pongs = channel.stream_stream("/test.Echo/Bidi")(iter(pings.get, None), timeout=20)
    for n, pong in enumerate(pongs, 1):
        answers.append(pong.decode())
        pings.put(b"%d" % n if n < 5 else None)
    return answers


if command == "":
    answer, call = unary.with_call(b"hello", timeout=20)
    trailers = dict(call.trailing_metadata())
    result = {
        "unary": answer.decode(),
        "app": trailers.get("x-app"),
        "binary": list(trailers.get("x-bin-bin", b"")),
        "large": len(unary(b"x" * 1_000_000, timeout=20)),
        "server_stream": [m.decode() for m in channel.unary_stream("/test.Echo/ServerStream")(b"20", timeout=20)],
        "client_stream": channel.stream_unary("/test.Echo/ClientStream")((b"%d" % n for n in range(50)), timeout=20).decode(),
        "bidi": ping_pong(),
        "fails": status_of(lambda: channel.unary_unary("/test.Echo/Fails")(b"", timeout=20)),
        "unknown_method": status_of(lambda: channel.unary_unary("/test.Echo/NoSuch")(b"", timeout=20)),
    }
elif command.startswith("slow:"):
    _, seconds, deadline = command.split(":")
    slow = channel.unary_unary("/test.Echo/Slow")
    timeout = float(deadline) if deadline else None
    result = status_of(lambda: slow(seconds.encode(), timeout=timeout))
else:
    result = status_of(lambda: unary(b"hello", timeout=20))
print(json.dumps(result))
