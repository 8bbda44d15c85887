"""An object store that knows enough of S3's protocol for a test: objects in memory, any key accepted."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

OBJECTS: dict[str, bytes] = {}


class Store(BaseHTTPRequestHandler):
    """Objects by path, bucket included."""

    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"0"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_PUT(self) -> None:
        signed = "AWS4-HMAC-SHA256 Credential=test-key/" in self.headers["Authorization"]
        OBJECTS[urlsplit(self.path).path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200 if signed else 403)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        prefix = parse_qs(url.query).get("prefix")
        if prefix is None:
            self.answer(200 if url.path in OBJECTS else 404, OBJECTS.get(url.path, b""))
            return
        bucket = url.path.rstrip("/") + "/"
        keys = [path.removeprefix(bucket) for path in OBJECTS if path.startswith(bucket + prefix[0])]
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(OBJECTS[bucket + key])}</Size></Contents>" for key in keys
        )
        self.answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode())

    do_HEAD = do_GET  # noqa: N815


ThreadingHTTPServer(("0.0.0.0", 9000), Store).serve_forever()
