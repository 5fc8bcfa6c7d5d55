"""Alerts as JSON by HTTP POST: in the form of Slack's incoming webhooks, which others take too, or all fields."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import urllib3

from trainwarden.errors import UsageError
from trainwarden.respond.alerts.post import NotDelivered
from trainwarden.respond.alerts.words import Message

_SECONDS = 10.0
_AGAIN = {408, 425, 429, *range(500, 600)}
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class WebhookCarrier:
    """Posts to one URL, which is a secret. Redirects are not followed: they could lead the details elsewhere."""

    def __init__(self, channel: str, url: str, form: str) -> None:
        """Raises UsageError: the URL is not one, or is not encrypted and leaves this host."""
        self._url, self._form = url, form
        require_safe_url(channel, url)
        self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(total=_SECONDS), maxsize=1)

    def send(self, message: Message) -> None:
        body = {"text": _slack(message.text)} if self._form == "slack" else message.fields
        try:
            answer = self._pool.request(
                "POST",
                self._url,
                body=json.dumps(body).encode(),
                headers={"Content-Type": "application/json", "User-Agent": "trainwarden"},
                redirect=False,
                preload_content=False,
            )
            status = answer.status
            answer.release_conn()
            answer.close()
        except (urllib3.exceptions.HTTPError, OSError) as e:
            raise NotDelivered(reason_of(e)) from None
        if not 200 <= status < 300:
            raise NotDelivered(f"the receiver answered with status {status}", final=status not in _AGAIN)


def require_safe_url(channel: str, url: str) -> None:
    """Check an address that details are sent to, without telling it.

    Raises:
        UsageError: it is no http(s) URL, or plain http to another host.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https"):
        raise UsageError(f"alert channel {channel}: its address is not an http(s) URL", hint="https://HOST/…")
    if parts.scheme == "http" and host not in LOOPBACK:
        raise UsageError(
            f"alert channel {channel}: its address is not encrypted", hint="https://…; plain http on this host alone"
        )


def reason_of(error: BaseException) -> str:
    """Why a connection failed, without the address, which is a secret."""
    match error:
        case urllib3.exceptions.SSLError():
            return "the receiver's certificate is not trusted, or TLS failed"
        case urllib3.exceptions.NameResolutionError():
            return "the receiver's name is not known"
        case urllib3.exceptions.NewConnectionError():
            return "the receiver refuses the connection or cannot be reached"
        case urllib3.exceptions.TimeoutError():
            return f"the receiver did not answer within {_SECONDS:.0f} s"
        case _:
            return f"the connection broke ({type(error).__name__})"


def _slack(text: str) -> str:
    """Slack reads three characters as its own marks."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
