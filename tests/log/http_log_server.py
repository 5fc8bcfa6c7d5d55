"""The log server in memory behind real HTTP on a free port of the loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from log_server import FaultyServer, LogServer

from trainwarden.errors import LogUnreachable


@contextmanager
def serving(server: LogServer | FaultyServer, address: str = "127.0.0.1") -> Iterator[str]:
    """Its URL while it is served."""
    guard = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            headers = {"TrainWarden-Signature": self.headers.get("TrainWarden-Signature", "")}
            try:
                with guard:
                    reply = server.request(self.command, self.path, body, headers, 1 << 24)
            except LogUnreachable:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if "content-length" not in reply.headers:
                self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)
            self.close_connection = "content-length" in reply.headers

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer((address, 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{address}:{httpd.server_address[1]}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
