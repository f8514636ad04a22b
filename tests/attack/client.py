#!/usr/bin/env python3
"""`client.py ADDRESS HOST RATE SECONDS`: the good client, an open loop; what it saw as JSON at the end.

Request number n is due n / RATE after the start whatever became of those before it, and its latency counts from then.
Connections are kept and used again; every twentieth request closes its own, so that new ones are tried as well.
A kept connection that was closed before a byte of the answer came is tried once more on a new one, as any client does.
"""

import asyncio
import json
import sys
import time

PATIENCE_S = 5.0
FRESH_EVERY = 20


class Client:
    """One application beside host A."""

    def __init__(self, ip, port, host):
        self.ip, self.port = ip, port
        self.head = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        self.idle, self.latencies, self.errors = [], [], {}

    async def run(self, rate, seconds):
        start, asked = time.monotonic(), []
        for number in range(int(rate * seconds)):
            due = start + number / rate
            await asyncio.sleep(max(due - time.monotonic(), 0))
            asked.append(asyncio.create_task(self.ask(due, number % FRESH_EVERY == 0)))
        await asyncio.gather(*asked)

    async def ask(self, due, fresh):
        try:
            await asyncio.wait_for(self.answered(fresh), PATIENCE_S)
            self.latencies.append(time.monotonic() - due)
        except (OSError, ValueError, asyncio.TimeoutError, asyncio.IncompleteReadError) as error:
            text = str(error) if isinstance(error, ValueError) else type(error).__name__
            self.errors[text] = self.errors.get(text, 0) + 1

    async def answered(self, fresh):
        if self.idle and not fresh:
            kept = self.idle.pop()
            try:
                return await self.exchange(kept, fresh)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                if getattr(error, "partial", b""):
                    raise
        await self.exchange(await asyncio.open_connection(self.ip, self.port, local_addr=(self.ip, 0)), fresh)

    async def exchange(self, connection, fresh):
        reader, writer = connection
        keep = False
        try:
            writer.write(self.head)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
            status = head.split(b" ")[1].decode()
            if status != "200":
                raise ValueError(f"status {status}")
            keep = not fresh and b"connection: close" not in head
        except IndexError:
            raise ValueError("an answer without a length") from None
        finally:
            if keep:
                self.idle.append(connection)
            else:
                writer.close()


def quantile(values, share):
    """The smallest that at least this share of them does not exceed; None of nothing."""
    values = sorted(values)
    return values[max(-int(-share * len(values) // 1), 1) - 1] if values else None


def main():
    (ip, port), host = sys.argv[1].split(":"), sys.argv[2]
    client = Client(ip, int(port), host)
    print("started", flush=True)
    asyncio.run(client.run(float(sys.argv[3]), float(sys.argv[4])))
    milliseconds = [latency * 1e3 for latency in client.latencies]
    print(json.dumps({"ok": len(milliseconds), "failed": sum(client.errors.values()), "errors": client.errors,
                      "p50_ms": quantile(milliseconds, 0.5), "p99_ms": quantile(milliseconds, 0.99),
                      "max_ms": max(milliseconds, default=None)}))


if __name__ == "__main__":
    main()
