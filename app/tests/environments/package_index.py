"""Wheels made by hand, and an index of them on 127.0.0.1 that may misbehave."""

from __future__ import annotations

import io
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def wheel(
    name: str,
    version: str = "1.0",
    requires: tuple[str, ...] = (),
    *,
    links: dict[str, str] | None = None,
    record: str = "",
    **files: bytes,
) -> tuple[str, bytes]:
    """A file name and a wheel; ``files`` are its members beside the metadata, with ``__`` for a slash.

    ``links`` are symbolic links and where they lead; ``record`` has more lines for its RECORD.
    """
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {line}\n" for line in requires)
    members = {
        f"{name}.py": b"here = True\n",
        **{path.replace("__", "/"): content for path, content in files.items()},
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, target in (links or {}).items():
            link = zipfile.ZipInfo(path)
            link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, target)
        for path, content in members.items():
            archive.writestr(path, content)
        archive.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in members) + record)
    return f"{name}-{version}-py3-none-any.whl", buffer.getvalue()


def _metadata(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA")))


class _Handler(BaseHTTPRequestHandler):
    server: PackageIndex

    def do_GET(self) -> None:
        index = self.server
        index.asked.append(self.path)
        if index.broken:
            self.send_error(500)
            return
        kind, name = self.path.strip("/").split("/")
        if kind == "simple":
            found = [file for file in index.files if file.split("-")[0] == name.replace("-", "_")]
            # Versions are resolved by their metadata alone, which do not trickle.
            links = "".join(f'<a href="/files/{file}" data-core-metadata="true">{file}</a>' for file in found)
            self._send(200 if found else 404, f"<html><body>{links}</body></html>".encode(), "text/html")
        elif name.endswith(".metadata"):
            self._send(200, _metadata(index.files[name.removesuffix(".metadata")]), "text/plain")
        elif name.startswith("trickling") and self.command != "HEAD":
            self._trickle(index.files[name])
        else:
            self._send(200, index.files[name], "application/octet-stream")

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def _send(self, status: int, body: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _trickle(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for byte in body:
            try:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
            except OSError:
                return
            if self.server.closing.wait(1):
                return

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the library's name
        pass


class PackageIndex(ThreadingHTTPServer):
    """An index of ``files``."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.broken = False
        """Whether it answers 500."""
        self.asked: list[str] = []
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Answer nobody any more, what trickles neither."""
        self.closing.set()
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://user:hidden-word@127.0.0.1:{self.server_address[1]}/simple"
