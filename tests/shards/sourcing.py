"""Sources called as the command line calls them, and a web server with real images and moods."""

from __future__ import annotations

import functools
import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.arguments import Parser
from shards.record import Record
from shards.sources import load_source


def read(source: str, *words: object, out: str = "pets") -> Iterator[Record]:
    """`read("folder", root)` gives the records of `shards make folder ROOT --out pets`."""
    parser = Parser()
    parser.add_argument("--out", type=Path, default=Path(out))
    load_source(source).add_options(parser)
    return iter(load_source(source).records(parser.parse_args([str(word) for word in words])))


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and understands `Range: bytes=a-b`; fails as often as the server says."""

    server: Server

    def do_HEAD(self) -> None:
        if not self.fails(self.path.partition("?")[0]):
            super().do_HEAD()

    def fails(self, path: str) -> bool:
        """Whether the request has been refused."""
        self.server.asked[path] += 1
        if not self.server.failures[path]:
            return False
        self.server.failures[path] -= 1
        self.send_error(self.server.status)
        return True

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.fails(path):
            return
        if self.headers["Range"] and self.server.has_ranges:
            data = Path(self.translate_path(path)).read_bytes()
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            part = data[int(first) : int(last) + 1 if last else None]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class Server(http.server.ThreadingHTTPServer):
    """Where it is, what was asked of it, and what it still refuses."""

    def __init__(self, folder: Path, *, has_ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.status = 503
        self.has_ranges = has_ranges


@contextmanager
def serve(folder: Path, *, has_ranges: bool = True) -> Iterator[Server]:
    """A server of this folder, while it is needed."""
    with Server(folder, has_ranges=has_ranges) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
