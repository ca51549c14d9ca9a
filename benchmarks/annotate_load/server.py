"""The real server, `python -m annotate serve`, as a process that can be started, measured and killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.annotate_load.postgresql import ABSENT, postgresql_database, postgresql_server
from benchmarks.annotate_load.world import PROJECT

START_SECONDS = 120.0


@dataclass
class Server:
    """A server of the database at `url`, always on the same port."""

    url: str
    log: Path
    port: int = field(default_factory=lambda: free_port())
    process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "annotate", "serve", "--database", self.url, "--port", str(self.port)]
        environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*command, "--project", PROJECT], stdout=log, stderr=log, env=environment)
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: it has no time to finish or to clean up anything."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop it as an operator would."""
        self._end(signal.SIGTERM)

    def memory_mb(self) -> float:
        """The memory that it holds now (resident set)."""
        status = Path(f"/proc/{self._running().pid}/status").read_text()
        kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(kilobytes) / 1024

    def cpu_seconds(self) -> float:
        """The processor time that it has used."""
        fields = Path(f"/proc/{self._running().pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _running(self) -> subprocess.Popen:
        if self.process is None:
            raise RuntimeError("the server was not started")
        return self.process

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def _end(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextlib.contextmanager
def running(url: str) -> Iterator[Server]:
    """A server that is stopped at the end."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(url, Path(folder) / "log")
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def fresh_database(kind: str) -> Iterator[str]:
    """The URL of an empty database, `sqlite` or `postgresql`, on the disk and with every commit synced to it."""
    if kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/votes.db"
        return
    with postgresql_server() as server:
        if server is None:
            raise RuntimeError(ABSENT)
        with postgresql_database(server, f"load_{uuid.uuid4().hex}") as url:
            yield url


def free_port() -> int:
    """A port that nobody listens at, below those that the system gives to clients: while the server is dead, somebody who calls
    it again and again must not be given its port.
    """
    for port in random.SystemRandom().sample(range(15_000, 30_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("no port is free")
