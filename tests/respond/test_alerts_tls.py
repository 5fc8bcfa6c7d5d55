"""Alerts over TLS: to receivers whose certificate is trusted, and to no other, never in the clear."""

from __future__ import annotations

import base64
import ipaddress
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from receivers import HttpReceiver, SmtpReceiver, running
from test_alerts import TOLD, sent

from trainwarden.respond.alerts.mail import MailCarrier
from trainwarden.respond.alerts.post import Post
from trainwarden.respond.alerts.webhook import WebhookCarrier

LOGIN = base64.b64encode(b"\0me\0secret")
UNTRUSTED = "certificate is not trusted"


class Authority:
    """A certificate authority of a test's own, and the contexts of servers that it names."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        certificate = self._signed(self._name, self._key, x509.BasicConstraints(ca=True, path_length=0))
        self.file.write_bytes(certificate)

    def _signed(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType) -> bytes:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def server(self, address: str = "127.0.0.1") -> ssl.SSLContext:
        """What a server at this address uses."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver")])
        place = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        file = self._folder / f"{self.file.stem}-{address}.pem"
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file.write_bytes(secret + self._signed(name, key, place))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """The one that this host trusts, by OpenSSL's own variable."""
    made = Authority(tmp_path, "trusted")
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    return made


def hook(url: str) -> Post:
    return Post("hook", WebhookCarrier("hook", url, "json"), "security", waits=(0.01,))


def mail(port: int, security: str) -> Post:
    carrier = MailCarrier(
        "mail", ("127.0.0.1", port), security, "tw@example.org", ["sec@example.org"], ("me", "secret")
    )
    return Post("mail", carrier, "security", waits=(0.01,))


def test_alerts_arrive_over_tls_where_the_certificate_is_trusted(authority: Authority) -> None:
    context = authority.server()
    with running(lambda: HttpReceiver(tls=context)) as receiver:
        assert sent(hook(receiver.url), TOLD) == []
        assert receiver.json[0]["run"] == TOLD.run
    for security in ("tls", "starttls"):
        with running(lambda s=security: SmtpReceiver(LOGIN, tls=context, starttls=s == "starttls")) as receiver:
            assert sent(mail(receiver.port, security), TOLD) == []
            assert receiver.logins == [LOGIN]
            assert "h.3.attn.weight" in receiver.mails[0]
            words = [line.split()[0] for line in receiver.plain]
            assert words == ([b"ehlo", b"STARTTLS"] if security == "starttls" else [])


def another_host(authority: Authority, folder: Path) -> ssl.SSLContext:
    return authority.server("127.0.0.2")


def another_authority(authority: Authority, folder: Path) -> ssl.SSLContext:
    return Authority(folder, "unknown").server()


@pytest.mark.parametrize("wrong", [another_host, another_authority])
def test_a_wrong_certificate_is_told_and_nothing_of_the_alert_leaves_in_the_clear(
    authority: Authority, tmp_path: Path, wrong: Callable[[Authority, Path], ssl.SSLContext]
) -> None:
    context = wrong(authority, tmp_path)
    with running(lambda: HttpReceiver(tls=context)) as receiver:
        failed, *_ = sent(hook(receiver.url), TOLD)
        assert UNTRUSTED in failed.reason
        assert receiver.url not in failed.reason
        assert receiver.bodies == []
    for security in ("tls", "starttls"):
        with running(lambda s=security: SmtpReceiver(LOGIN, tls=context, starttls=s == "starttls")) as receiver:
            failed, *_ = sent(mail(receiver.port, security), TOLD)
            assert UNTRUSTED in failed.reason
            assert (receiver.mails, receiver.logins) == ([], [])
            assert {line.split()[0].upper() for line in receiver.plain} <= {b"EHLO", b"STARTTLS"}


def test_a_receiver_that_does_not_speak_tls_gets_nothing(authority: Authority) -> None:
    with running(HttpReceiver) as receiver:
        failed, *_ = sent(hook(receiver.url.replace("http:", "https:")), TOLD)
        assert failed.reason
        assert receiver.bodies == []
    with running(lambda: SmtpReceiver(LOGIN)) as receiver:
        failed, *_ = sent(mail(receiver.port, "tls"), TOLD)
        assert failed.reason
        assert (receiver.mails, receiver.logins) == ([], [])
