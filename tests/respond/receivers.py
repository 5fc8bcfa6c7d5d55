"""Receivers of alerts on this host: real HTTP and SMTP servers that answer as a test says."""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HttpReceiver:
    """Keeps what is posted; `answers` gives the status of each request, the last for all after it; `tls`: https."""

    def __init__(self, *answers: int, tls: ssl.SSLContext | None = None) -> None:
        self.answers = list(answers or (200,))
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.hold = threading.Event()  # while clear and `slow`, nobody is answered
        self.slow = False
        self.came = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with receiver.came:
                    receiver.bodies.append(body)
                    receiver.paths.append(self.path)
                    receiver.headers.append({k.lower(): v for k, v in self.headers.items()})
                    at = min(len(receiver.bodies), len(receiver.answers)) - 1
                    receiver.came.notify_all()
                if receiver.slow:
                    receiver.hold.wait(60)
                self.send_response(receiver.answers[at])
                self.send_header("Content-Length", "0")
                if receiver.answers[at] == 302:
                    self.send_header("Location", f"{receiver.url}/elsewhere")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # whoever does not trust the certificate ends the handshake

        self._scheme = "https" if tls else "http"
        self.server = Server(("127.0.0.1", 0), Handler)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.server.server_address[1]}/services/T0/B0/token"

    @property
    def json(self) -> list[Any]:
        return [json.loads(body) for body in self.bodies]

    def wait(self, count: int) -> None:
        with self.came:
            assert self.came.wait_for(lambda: len(self.bodies) >= count, 30), f"{len(self.bodies)} of {count} came"

    def close(self) -> None:
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()


class SmtpReceiver:
    """A mail server of a few commands (RFC 5321), with AUTH PLAIN when a password is given; keeps what is sent.

    With `tls` it speaks TLS: from the first byte on, or with `starttls` once asked to; `plain` is what came before.
    """

    def __init__(
        self,
        login: bytes = b"",
        greet: bytes = b"220 here",
        tls: ssl.SSLContext | None = None,
        starttls: bool = False,
    ) -> None:
        self.mails: list[str] = []
        self.plain: list[bytes] = []
        self.logins: list[bytes] = []
        receiver = self

        class Handler(socketserver.StreamRequestHandler):
            secure = False

            def handle(self) -> None:
                with suppress(OSError):  # of a handshake that the other side ends, too
                    if tls and not starttls:
                        self.encrypt(tls)
                    self.talk()

            def encrypt(self, context: ssl.SSLContext) -> None:
                self.request = context.wrap_socket(self.request, server_side=True)
                self.setup()
                self.secure = True

            def talk(self) -> None:
                self.say(greet)
                while line := self.rfile.readline():
                    if not self.secure:
                        receiver.plain.append(line)
                    word = line.split()[0].upper() if line.split() else b""
                    if word == b"EHLO":
                        offers = [b"250-STARTTLS"] if tls and not self.secure else []
                        self.say(b"250-here", *offers, b"250 AUTH PLAIN" if login else b"250 8BITMIME")
                    elif word == b"STARTTLS" and tls:
                        self.say(b"220 go on")
                        self.encrypt(tls)
                    elif word == b"AUTH":
                        receiver.logins.append(line.split()[2])
                        self.say(b"235 ok" if line.split()[2] == login else b"535 no")
                    elif word == b"DATA":
                        self.say(b"354 go on")
                        receiver.mails.append(self.data())
                        self.say(b"250 ok")
                    elif word == b"QUIT":
                        self.say(b"221 bye")
                        return
                    else:
                        self.say(b"250 ok" if word in (b"MAIL", b"RCPT", b"RSET") else b"502 no")

            def data(self) -> str:
                lines = []
                while (line := self.rfile.readline()) not in (b".\r\n", b""):
                    lines.append(line)
                return b"".join(lines).decode()

            def say(self, *lines: bytes) -> None:
                self.wfile.write(b"".join(line + b"\r\n" for line in lines))

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def running(make: Callable[[], Any]) -> Iterator[Any]:
    """A receiver that is closed at the end."""
    receiver = make()
    try:
        yield receiver
    finally:
        receiver.close()


def dead_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
