"""Just enough of HTTP/1.1 to keep a connection busy: the driver must not be what limits the server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from annotate.app.guard import COOKIE

SECONDS = 30.0  # without an answer


@dataclass
class Connection:
    """One person's connection to the server on this machine; opened when it is used, and anew after a fault."""

    port: int
    token: str
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = field(default=None, init=False)

    async def get(self, path: str) -> Any:
        """What is at `path`, as JSON."""
        return await self._ask(f"GET {path} HTTP/1.1\r\n", b"")

    async def post(self, path: str, body: Any) -> Any:
        """The answer to `body`, both JSON.

        Raises:
            OSError, EOFError, TimeoutError: the server is not there, or went away before it had answered.
            RuntimeError: it answered, but not with 200.
        """
        return await self._ask(f"POST {path} HTTP/1.1\r\ncontent-type: application/json\r\n", json.dumps(body).encode())

    async def hold(self, path: str) -> None:
        """Ask for a stream and leave it open, as a page does; returns when it ends or is cancelled."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(self._head(f"GET {path} HTTP/1.1\r\n", 0))
            while await reader.read(4096):
                pass
        finally:
            writer.close()

    def close(self) -> None:
        """Drop the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _ask(self, head: str, body: bytes) -> Any:
        try:
            status, answer = await asyncio.wait_for(self._exchange(head, body), SECONDS)
        except BaseException:
            self.close()
            raise
        if status != 200:
            raise RuntimeError(f"{head.splitlines()[0]}: {status} {answer[:300]!r}")
        return json.loads(answer)

    def _head(self, head: str, length: int) -> bytes:
        rest = f"host: localhost:{self.port}\r\ncookie: {COOKIE}={self.token}\r\ncontent-length: {length}\r\n\r\n"
        return (head + rest).encode()

    async def _exchange(self, head: str, body: bytes) -> tuple[int, bytes]:
        if self._streams is not None and self._streams[0].at_eof():  # the server closes what is idle for some seconds
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        reader, writer = self._streams
        writer.write(self._head(head, len(body)) + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        return int(lines[0].split()[1]), await reader.readexactly(int(headers["content-length"]))
