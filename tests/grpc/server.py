"""The gRPC application: bytes in, bytes out, every kind of call. Usage: server.py ADDRESS ID"""

import sys
import time
from concurrent import futures

import grpc


def unary(request, context):
    context.set_trailing_metadata((("x-app", sys.argv[2]), ("x-bin-bin", b"\x00\xff")))
    return b"unary:" + request


def server_stream(request, context):
    for n in range(int(request)):
        yield b"item %d" % n


def client_stream(requests, context):
    return b"sum %d" % sum(int(r) for r in requests)


def bidi(requests, context):
    for request in requests:
        yield b"pong " + request


def fails(request, context):
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")


def slow(request, context):
    time.sleep(float(request))
    return b"late"


class Handlers(grpc.GenericRpcHandler):
    METHODS = {
        "/test.Echo/Unary": grpc.unary_unary_rpc_method_handler(unary),
        "/test.Echo/ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "/test.Echo/ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "/test.Echo/Bidi": grpc.stream_stream_rpc_method_handler(bidi),
        "/test.Echo/Fails": grpc.unary_unary_rpc_method_handler(fails),
        "/test.Echo/Slow": grpc.unary_unary_rpc_method_handler(slow),
    }

    def service(self, details):
        return self.METHODS.get(details.method)


server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
server.add_generic_rpc_handlers((Handlers(),))
if not server.add_insecure_port(sys.argv[1]):
    sys.exit("cannot listen on " + sys.argv[1])
server.start()
print("listening", flush=True)
server.wait_for_termination()
