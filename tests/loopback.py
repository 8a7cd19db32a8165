"""A web server on the loopback that does to a download what networks and mirrors do."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Page:
    """What a path answers; lists are used up, one entry a request."""

    content: bytes = b""
    etag: str | None = '"one"'
    ranges: bool = True
    believes_if_range: bool = True  # False: sends a part of whatever it has now
    statuses: list[int] = field(default_factory=list)  # before the content: 500, 404, …
    cuts: list[int] = field(default_factory=list)  # send so many bytes of the body, then hang up
    claims: int | None = None  # Content-Length, instead of the truth
    location: str | None = None
    chunked: bool = False
    gate: threading.Barrier | None = None  # waits for others before the body


class Server:
    """`pages` by path; `seen` holds path, Range and If-Range of every request."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.seen: list[tuple[str, str | None, str | None]] = []
        self.sent = 0  # bytes of bodies
        self.url = ""

    def page(self, path: str, content: bytes = b"", **how: object) -> str:
        """Lay a page there; its address."""
        self.pages[path] = Page(content=content, **how)  # type: ignore[arg-type]
        return self.url + path

    def ranges(self, path: str) -> list[str | None]:
        return [asked for seen, asked, _ in self.seen if seen == path]


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a port of its own."""
    server = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            asked, only_if = self.headers.get("Range"), self.headers.get("If-Range")
            server.seen.append((self.path, asked, only_if))
            page = server.pages.get(self.path)
            if page is None:
                self._empty(404)
            elif page.statuses:
                self._empty(page.statuses.pop(0))
            elif page.location is not None:
                self._empty(302, Location=page.location)
            else:
                self._content(page, asked, only_if)

        def _empty(self, status: int, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _content(self, page: Page, asked: str | None, only_if: str | None) -> None:
            body, total = page.content, len(page.content)
            is_same = only_if == page.etag or not page.believes_if_range
            if asked and page.ranges and is_same:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= total:
                    self._empty(416, **{"Content-Range": f"bytes */{total}"})
                    return
                body = body[start:]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            if page.etag:
                self.send_header("ETag", page.etag)
            if page.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                length = len(body) if page.claims is None else page.claims
                self.send_header("Content-Length", str(length))
            self.end_headers()
            if page.gate is not None:
                page.gate.wait(10)
            if page.cuts:
                body = body[: page.cuts.pop(0)]
                self.close_connection = True
            if page.claims is not None:
                self.close_connection = True
            server.sent += len(body)
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if page.chunked else body)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        server.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()
