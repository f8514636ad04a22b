"""The backend of `poison`: `poison_backend.py PORT` answers every GET with 200, and dies of a tenant `poison…`."""

import asyncio
import os
import sys

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

HEAD_MAX = 16 << 10


class Connection(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.read = b""

    def data_received(self, data):
        self.read += data
        if len(self.read) > HEAD_MAX:
            self.transport.close()
            return
        while b"\r\n\r\n" in self.read:
            head, self.read = self.read.split(b"\r\n\r\n", 1)
            if b"\r\nx-tenant: poison" in head.lower():
                os._exit(1)
            self.transport.write(ANSWER)


async def serve(port):
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


asyncio.run(serve(int(sys.argv[1])))
