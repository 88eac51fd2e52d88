"""A server that speaks S3, in this process, and a wire to it that can be cut."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from moto.server import ThreadedMotoServer
from pyarrow import fs


@dataclass
class S3:
    """A server that speaks S3, with one bucket, and the requests that it got."""

    address: str
    requests: list[str] = field(default_factory=list)

    def uri(self, path: str) -> str:
        return f"s3://{path}?endpoint_override={self.address}&scheme=http"

    def during(self, work: Callable[[], Any]) -> list[str]:
        """Method and path of what `work` asked for."""
        before = len(self.requests)
        work()
        return self.requests[before:]

    def open(self) -> fs.FileSystem:
        return fs.FileSystem.from_uri(self.uri("clips"))[0]


class _Log(logging.Handler):
    def __init__(self, requests: list[str]) -> None:
        super().__init__()
        self.requests = requests

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if " HTTP/1.1" in message:
            for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
                if f"{method} /" in message:
                    self.requests.append(message[message.index(f"{method} /") :].split(" HTTP/")[0])


@contextlib.contextmanager
def s3_server(bucket: str = "clips") -> Iterator[S3]:
    """The server while the block runs, with one bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    found = S3(f"{host}:{port}")
    log, handler = logging.getLogger("werkzeug"), _Log(found.requests)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    filesystem = fs.FileSystem.from_uri(found.uri(bucket) + "&allow_bucket_creation=true")[0]
    filesystem.create_dir(bucket)
    try:
        yield found
    finally:
        log.removeHandler(handler)
        # what moto holds is one for all servers of a process, the next one among them
        urllib.request.urlopen(urllib.request.Request(f"http://{found.address}/moto-api/reset", method="POST")).close()
        server.stop()


class Wire:
    """A TCP port that leads to another, and can be cut: then it refuses and every connection breaks."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._open: list[socket.socket] = []
        self._listening: socket.socket | None = None
        self._port = 0
        self.mend()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def mend(self) -> None:
        """Lead on (again), at the same port."""
        self._listening = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def cut(self) -> None:
        """Refuse, and break what is connected."""
        assert self._listening is not None
        for connection in [self._listening, *self._open]:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._open.clear()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                one = listening.accept()[0]
            except OSError:
                return
            other = socket.create_connection(self._target)
            self._open += [one, other]
            for pair in ((one, other), (other, one)):
                threading.Thread(target=_carry, args=pair, daemon=True).start()


def _carry(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
