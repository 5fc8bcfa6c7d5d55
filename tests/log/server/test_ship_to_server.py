"""The shipping client against the real log server: end to end, through a crash of it, and with the network cut."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from logserver import _SERVE, HOSTS, LOG_KEY, ORIGIN, Process, fetch_log, serving, write_hosts

sys.path.insert(0, str(Path(__file__).parents[1]))
from recorded_rows import KEY, make_run, step_records

from trainwarden.cli import main
from trainwarden.log import records
from trainwarden.log.client.link import HttpTransport
from trainwarden.log.client.state import targets
from trainwarden.log.client.verify import verify_shipped
from trainwarden.log.journal import LogWriter
from trainwarden.log.merkle import leaf_hash
from trainwarden.log.protocol import read_entry
from trainwarden.log.reader import LogReader
from trainwarden.model import Entry, Gap, LoggedEntry, RecordBatch, Sealed, canonical, decode_leaf
from trainwarden.store import RunDir, Store

SEALED = Sealed(run="20260101-000000-aaaa", seal="00", key=KEY.public)
GAP = Gap(attempt=0, rank=1, step=3, reason="a gap")
LARGE = Gap(attempt=0, rank=1, step=4, reason="x" * 100_000)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    Store.open(tmp_path / "store", create=True).close()
    rows: list[Entry] = list(step_records(700))
    for name, key in (("key", bytes(range(32))), ("hostkey", bytes([1]) * 32)):
        (tmp_path / name).write_text(key.hex())
        (tmp_path / name).chmod(0o600)
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "key"))
    monkeypatch.chdir(tmp_path)
    return make_run(tmp_path / "store", [[SEALED], rows[:300], [GAP, LARGE, *rows[300:]]])


def ship(run: RunDir, url: str, *options: str) -> int:
    lines = [f'server = "{url}"', f'origin = "{ORIGIN}"', f'server_key = "{LOG_KEY.public}"', 'host = "node-1"']
    lines += ['host_key = "hostkey"', "batch_records = 100"]
    Path("trainwarden.toml").write_text("[log]\n" + "\n".join(lines))
    store = str(run.path.parents[1])
    return main(["log", "ship", run.id, "--store", store, "--config", "trainwarden.toml", *options])


def check_kept_once(run: RunDir, url: str) -> None:
    """Every entry of the run is in the served log once and in order, objects and all."""
    found: list[tuple[int, bytes]] = []
    with httpx.Client() as client:
        for entry in fetch_log(client, url):
            bound, leaf = read_entry(entry)
            carried = client.get(f"{url}/objects/{bound.object}").content if bound.object else b""
            match decode_leaf(leaf):
                case RecordBatch() as batch:
                    table = records.read_batch(carried, batch)
                    found += zip(table.column("index").to_pylist(), table.column("leaf").to_pylist(), strict=True)
                case LoggedEntry() as told:
                    assert leaf_hash(told.entry.encode() or carried).hex() == told.leaf
                    found.append((told.index, bytes.fromhex(told.leaf)))
    with LogReader.open(run.log) as log:
        assert found == [(i, leaf_hash(data)) for i, data in log.entries()]


def test_run_is_shipped_kept_and_verified(run: RunDir, tmp_path: Path) -> None:
    assert HOSTS["node-1"].public
    with serving(tmp_path) as server:
        assert ship(run, server.url) == 0
        check_kept_once(run, server.url)
        (target,) = targets(run.shipping)
        kept = verify_shipped(run, target, HttpTransport(), public_key=KEY.public)
        assert (kept.entries, kept.of) == (703, 703)


def test_server_killed_between_requests_and_started_again_keeps_all_once(run: RunDir, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert ship(run, server.url) == 0
        server.kill()
    log = LogWriter.open(run.log, KEY)
    log.append([canonical(GAP), *(canonical(r) for r in step_records(50, seed=1))])
    log.close()
    with serving(tmp_path) as server:
        assert ship(run, server.url) == 0
        check_kept_once(run, server.url)
        (target,) = targets(run.shipping)
        assert verify_shipped(run, target, HttpTransport()).entries == 754


def test_run_is_shipped_over_tls_to_a_server_whose_certificate_is_known(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = self_signed(tmp_path)
    told = {"tls_certificate": str(certificate), "tls_key": str(key)}
    with serving(tmp_path, **told) as server:
        assert server.url.startswith("https://")
        monkeypatch.setattr(HttpTransport.__init__, "__defaults__", (1.0, 2.0, 3.0))
        assert ship(run, server.url, "--seconds", "0") == 2, "a certificate that nobody vouches for"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert ship(run, server.url) == 0
        (target,) = targets(run.shipping)
        assert verify_shipped(run, target, HttpTransport()).entries == 703


def self_signed(folder: Path) -> tuple[Path, Path]:
    """The PEM files of a certificate for 127.0.0.1 and of its key."""
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    begin = datetime.datetime(2020, 1, 1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin.replace(year=2100))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(secret, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(secret.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return folder / "certificate.pem", folder / "key.pem"


# -- two hosts with a network between them


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, str, str]]:
    """A network namespace: its name, our end of the cable, and its address."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2: apt-get install iproute2")
    tag = secrets.token_hex(3)
    name, ours, theirs, net = f"tw{tag}", f"twa{tag}", f"twb{tag}", f"10.213.{secrets.randbelow(254) + 1}"
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as e:
        pytest.skip(f"network namespaces are not permitted here: {e.stderr.decode().strip()}")
    try:
        try:
            ip("link", "add", ours, "type", "veth", "peer", "name", theirs)
            ip("link", "set", theirs, "netns", name)
            ip("addr", "add", f"{net}.1/30", "dev", ours)
            ip("link", "set", ours, "up")
            ip("-n", name, "addr", "add", f"{net}.2/30", "dev", theirs)
            ip("-n", name, "link", "set", theirs, "up")
            ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as e:
            pytest.skip(f"network namespaces are not permitted here: {e.stderr.decode().strip()}")
        yield name, ours, f"{net}.2"
    finally:
        subprocess.run(["ip", "link", "del", ours], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_network_cut_between_hosts_loses_and_doubles_nothing(
    run: RunDir, tmp_path: Path, elsewhere: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, cable, address = elsewhere
    write_hosts(tmp_path / "hosts.toml")
    told = {"origin": ORIGIN, "store": str(tmp_path / "tiles"), "hosts": str(tmp_path / "hosts.toml"), "port": 0}
    process = subprocess.Popen(
        ["ip", "netns", "exec", name, sys.executable, "-c", _SERVE, json.dumps(told | {"bind": address})],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        server = Process(process, process.stdout.readline().strip())
        monkeypatch.setattr(HttpTransport.__init__, "__defaults__", (0.3, 1.0, 2.0))
        ip("link", "set", cable, "down")
        assert ship(run, server.url, "--seconds", "0") == 2
        ip("link", "set", cable, "up")
        assert ship(run, server.url) == 0
        log = LogWriter.open(run.log, KEY)
        log.append([canonical(GAP)])
        log.close()
        ip("link", "set", cable, "down")
        assert ship(run, server.url, "--seconds", "0") == 2
        ip("link", "set", cable, "up")
        assert ship(run, server.url) == 0
        check_kept_once(run, server.url)
    finally:
        process.terminate()
        process.communicate(timeout=60)
