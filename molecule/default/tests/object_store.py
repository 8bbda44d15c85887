"""An object store that knows enough of S3's and of Azure Blob Storage's protocols for a test: objects are files."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

# Who may come: S3's key and Azure's account, of which the signature itself is not checked.
SIGNED = re.compile(r"AWS4-HMAC-SHA256 Credential=test-key/|SharedKey testaccount:")
FILES = Path(tempfile.mkdtemp())
# Object by path, bucket or container included.
OBJECTS: dict[str, Path] = {}
CHUNK = 1024 * 1024


def file_of(*names: str) -> Path:
    """A file for what has this name, whatever letters are in it."""
    return FILES / hashlib.sha256(repr(names).encode()).hexdigest()


class Store(BaseHTTPRequestHandler):
    """Objects by path. What is uploaded in parts is put together when the client says so."""

    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "ETag": '"0"', **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def receive(self, file: Path) -> None:
        left = int(self.headers["Content-Length"])
        with file.open("wb") as out:
            while left:
                data = self.rfile.read(min(left, CHUNK))
                left -= len(data)
                out.write(data)

    def body(self) -> str:
        return self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()

    def put_together(self, path: str, parts: list[Path]) -> None:
        with file_of(path).open("wb") as out:
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, out, CHUNK)
                part.unlink()
        OBJECTS[path] = file_of(path)

    def do_PUT(self) -> None:
        path, query = self.asked()
        if query.get("comp") == "blocklist":
            blocks = re.findall(r"<Latest>(.*?)</Latest>", self.body())
            self.put_together(path, [file_of(path, block) for block in blocks])
        elif part := query.get("partNumber") or query.get("blockid"):
            self.receive(file_of(path, part))
        else:
            self.receive(file_of(path))
            OBJECTS[path] = file_of(path)
        signed = SIGNED.match(self.headers["Authorization"] or "")
        # Amazon says 200 and Azure 201.
        self.answer((201 if "x-ms-version" in self.headers else 200) if signed else 403)

    def do_POST(self) -> None:
        path, query = self.asked()
        if "uploads" in query:
            key = escape(path.split("/", 2)[2])
            upload = f"<Bucket>bucket</Bucket><Key>{key}</Key><UploadId>0</UploadId>"
            self.answer(200, f"<InitiateMultipartUploadResult>{upload}</InitiateMultipartUploadResult>".encode())
            return
        numbers = re.findall(r"<PartNumber>(\d+)</PartNumber>", self.body())
        self.put_together(path, [file_of(path, number) for number in numbers])
        self.answer(200, b"<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")

    def do_GET(self) -> None:
        path, query = self.asked()
        if "prefix" in query:
            self.list_objects(path.rstrip("/") + "/", query["prefix"])
            return
        if path not in OBJECTS:
            self.answer(404, x_ms_error_code="BlobNotFound")
            return
        size = OBJECTS[path].stat().st_size
        wanted = self.headers["x-ms-range"] or self.headers["Range"]
        first, last = 0, size - 1
        if wanted:
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
        self.send_response(206 if wanted else 200)
        for name, value in {
            "Content-Length": str(last - first + 1),
            "Content-Range": f"bytes {first}-{last}/{size}",
            "Content-Type": "application/octet-stream",
            "ETag": '"0"',
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
            "x-ms-blob-type": "BlockBlob",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with OBJECTS[path].open("rb") as file:
                file.seek(first)
                while first <= last:
                    data = file.read(min(CHUNK, last - first + 1))
                    first += len(data)
                    self.wfile.write(data)

    do_HEAD = do_GET  # noqa: N815

    def list_objects(self, bucket: str, prefix: str) -> None:
        found = {path.removeprefix(bucket): file.stat().st_size for path, file in OBJECTS.items()}
        keys = [key for key in found if key.startswith(prefix)]
        if "x-ms-version" in self.headers:
            entries = "".join(
                f"<Blob><Name>{escape(key)}</Name><Properties><Content-Length>{found[key]}</Content-Length>"
                "<BlobType>BlockBlob</BlobType></Properties></Blob>"
                for key in keys
            )
            body = f"<EnumerationResults><Blobs>{entries}</Blobs><NextMarker/></EnumerationResults>"
        else:
            entries = "".join(f"<Contents><Key>{escape(key)}</Key><Size>{found[key]}</Size></Contents>" for key in keys)
            body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        self.answer(200, body.encode(), Content_Type="application/xml")

    def asked(self) -> tuple[str, dict[str, str]]:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        return unquote(url.path), query


ThreadingHTTPServer(("0.0.0.0", 9000), Store).serve_forever()
