"""Google Cloud Storage for a test: the emulator of the Python index, and a server that exchanges a key for a token."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

from gcp_storage_emulator.server import create_server


class Tokens(BaseHTTPRequestHandler):
    """Says on its output who came: the emulator itself asks nobody for a token."""

    def do_POST(self) -> None:
        assertion = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["assertion"][0]
        claims = json.loads(base64.urlsafe_b64decode(assertion.split(".")[1] + "=="))
        print("token for", claims["iss"], flush=True)
        body = json.dumps({"access_token": "test-token", "expires_in": 3600, "token_type": "Bearer"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


threading.Thread(target=ThreadingHTTPServer(("0.0.0.0", 9001), Tokens).serve_forever).start()
create_server("0.0.0.0", 9000, in_memory=True, default_bucket="bucket").run()
