"""Alerts as mail over SMTP, encrypted unless the server is on this host."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

from trainwarden.errors import UsageError
from trainwarden.respond.alerts.post import NotDelivered
from trainwarden.respond.alerts.webhook import LOOPBACK
from trainwarden.respond.alerts.words import Message

_SECONDS = 10.0


class MailCarrier:
    """Sends each message over a connection of its own."""

    def __init__(
        self,
        channel: str,
        server: tuple[str, int],
        security: str,
        sender: str,
        to: Sequence[str],
        login: tuple[str, str],
    ) -> None:
        """`login`: user and password, both "" for none. Raises UsageError: nobody to send to, or not encrypted."""
        if not to or any("\n" in address or "\r" in address for address in (sender, *to)):
            raise UsageError(f"alert channel {channel}: `to` and `sender` are mail addresses")
        if security == "none" and server[0] not in LOOPBACK:
            raise UsageError(
                f"alert channel {channel}: mail to {server[0]} would not be encrypted", hint='security = "starttls"'
            )
        self._server, self._security, self._sender, self._to, self._login = server, security, sender, to, login

    def send(self, message: Message) -> None:
        mail = EmailMessage()
        mail["Subject"], mail["From"], mail["To"] = message.subject, self._sender, ", ".join(self._to)
        mail["Date"], mail["Message-ID"] = formatdate(localtime=False), make_msgid(domain="trainwarden")
        mail.set_content(message.text)
        try:
            with self._connected() as connection:
                if self._login[0]:
                    connection.login(*self._login)
                connection.send_message(mail)
        except smtplib.SMTPAuthenticationError:
            raise NotDelivered("the mail server does not take the user and password", final=True) from None
        except smtplib.SMTPNotSupportedError:
            raise NotDelivered(
                "the mail server does not offer what is asked for (STARTTLS, login)", final=True
            ) from None
        except smtplib.SMTPRecipientsRefused:
            raise NotDelivered("the mail server refuses every recipient", final=True) from None
        except smtplib.SMTPResponseException as e:
            raise NotDelivered(f"the mail server answered with code {e.smtp_code}", final=e.smtp_code >= 500) from None
        except ssl.SSLError:
            raise NotDelivered("the mail server's certificate is not trusted, or TLS failed") from None
        except TimeoutError:
            raise NotDelivered(f"the mail server did not answer within {_SECONDS:.0f} s") from None
        except (smtplib.SMTPException, OSError) as e:
            raise NotDelivered(f"the mail server cannot be reached ({type(e).__name__})") from None

    def _connected(self) -> smtplib.SMTP:
        host, port = self._server
        if self._security == "tls":
            return smtplib.SMTP_SSL(host, port, timeout=_SECONDS, context=ssl.create_default_context())
        connection = smtplib.SMTP(host, port, timeout=_SECONDS)
        if self._security == "starttls":
            try:
                connection.starttls(context=ssl.create_default_context())
            except BaseException:
                connection.close()
                raise
        return connection
