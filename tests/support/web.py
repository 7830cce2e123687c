"""A web server on loopback for tests that fetch: it serves what it is given, and remembers what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Page:
    """What the server answers: `status`, `body`, `headers`. With an ETag or Last-Modified among them, 304 when it is asked for."""

    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


@dataclass
class Web:
    """`pages` by path, else the files below `files`; `asked` are the method, path and status of each
    request, `authorizations` the header of that name."""

    url: str = ""
    pages: dict[str, Page] = field(default_factory=dict)
    files: Path | None = None
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)

    def page(self, path: str) -> Page:
        """What stands at a path."""
        if path in self.pages:
            return self.pages[path]
        file = self.files / path.lstrip("/") if self.files else None
        return Page(file.read_bytes()) if file is not None and file.is_file() else Page(status=404)


@contextmanager
def serving(files: Path | None = None) -> Iterator[Web]:
    """A server until the block ends."""
    web = Web(files=files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = web.page(self.path.partition("?")[0])
            kept = (self.headers.get("If-None-Match"), self.headers.get("If-Modified-Since"))
            fresh = any(value is not None and value in page.headers.values() for value in kept)
            status = 304 if fresh else page.status
            web.authorizations.append(self.headers.get("Authorization"))
            web.asked.append((self.command, self.path, status))
            self.send_response(status)
            for name, value in page.headers.items():
                self.send_header(name, value)
            body = b"" if fresh else page.body
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Not on the terminal of the tests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
