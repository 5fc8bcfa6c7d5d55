"""`log publish`, `log cosign` and `verify --witness` on a run's log: what witnesses saw cannot be taken back here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import loopback
import pytest

from trainwarden.checks import Failed, NotChecked, Passed, check_witnesses
from trainwarden.cli import main
from trainwarden.errors import LogTampered
from trainwarden.keys import SigningKey
from trainwarden.log import LogReader, LogWriter
from trainwarden.log.cosignature import cosign
from trainwarden.log.notes import split_note
from trainwarden.log.policy import k_of, parse_policy
from trainwarden.log.tilelog import TileLog, from_folder
from trainwarden.log.vkeys import COSIGNATURE, VerifierKey
from trainwarden.log.witness import Accepted, Refused, SplitView, parse_submission
from trainwarden.log.witness_state import Witness
from trainwarden.log.witnessed import keep_cosigned
from trainwarden.model import ProcessExited, Sealed, canonical
from trainwarden.store import Store

ONE, TWO = SigningKey(b"\x11" * 32), SigningKey(b"\x12" * 32)
W1, W2 = VerifierKey("w/one", ONE.public, COSIGNATURE), VerifierKey("w/two", TWO.public, COSIGNATURE)


class Run:
    """A run with nothing but a log."""

    def __init__(self, tmp_path: Path) -> None:
        self.store = Store.open(tmp_path / "store", create=True)
        self.key = SigningKey.load_or_create(tmp_path / "key")
        self.folder = self.store.create_run()
        writer = LogWriter.create(self.folder.log, f"trainwarden/{self.folder.id}", self.key)
        writer.append([canonical(Sealed(run=self.folder.id, seal="00" * 32, key=self.key.public, wall_ns=1))])
        writer.close()

    def grow(self, count: int, code: int = 0) -> None:
        writer = LogWriter.open(self.folder.log, self.key)
        exits = (ProcessExited(attempt=0, rank=0, pid=i, code=code, reason="", wall_ns=i) for i in range(count))
        writer.append([canonical(e) for e in exits])
        writer.close()

    def head(self) -> str:
        with LogReader.open(self.folder.log, self.key.public) as log:
            return log.head.note

    def cosigned_by(self, *keys: SigningKey) -> None:
        note = self.head()
        names = {ONE.public: "w/one", TWO.public: "w/two"}
        lines = [cosign(split_note(note.encode())[0], names[key.public], key, 9) for key in keys]
        keep_cosigned(self.folder.log, note, lines)

    def checked(self, k: int) -> Any:
        return check_witnesses(self.store, self.folder.id, self.key.public, k_of([W1, W2], k)).result

    def main(self, *words: str) -> int:
        return main([*words, "--store", str(self.store.path), "--json"])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "key"))
    made = Run(tmp_path)
    made.grow(5)
    return made


def test_enough_cosignatures_pass_and_one_too_few_fails(run: Run) -> None:
    assert isinstance(run.checked(1), Failed)
    run.cosigned_by(ONE)
    assert isinstance(run.checked(1), Passed)
    assert "missing: w/two" in run.checked(2).reason
    run.cosigned_by(TWO)
    assert isinstance(run.checked(2), Passed), "lines gather under one head"


def test_without_witnesses_nothing_was_checked(run: Run) -> None:
    for policy in (None, parse_policy(b"quorum none\n")):
        result = check_witnesses(run.store, run.folder.id, run.key.public, policy).result
        assert isinstance(result, NotChecked)


def test_a_log_that_went_on_is_not_cosigned_to_its_end(run: Run) -> None:
    run.cosigned_by(ONE, TWO)
    run.grow(3)
    assert run.checked(2).reason == "the head of size 9 is not cosigned, an earlier one of size 6 is"


def test_a_log_put_back_to_an_earlier_state_is_seen(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder.log, tmp_path / "earlier")
    run.grow(3)
    run.cosigned_by(ONE, TWO)
    cosigned = (run.folder.log / "cosigned").read_bytes()
    shutil.rmtree(run.folder.log)
    shutil.copytree(tmp_path / "earlier", run.folder.log)
    (run.folder.log / "cosigned").write_bytes(cosigned)
    assert "rolled back: witnesses cosigned size 9" in run.checked(2).reason
    run.grow(4, code=1)  # and by another history with the same key it is a split view
    assert "split view: witnesses cosigned root" in run.checked(2).reason


def test_a_forged_or_malformed_cosigned_head_fails(run: Run) -> None:
    run.cosigned_by(ONE, TWO)
    path = run.folder.log / "cosigned"
    good = path.read_bytes()
    for bad in (b"", b"nonsense", good[:-9] + b"AAAAAAA=\n", good.replace(b"\n6\n", b"\n7\n"), good * 4000):
        path.write_bytes(bad)
        assert isinstance(run.checked(1), Failed)


@contextmanager
def serving(witness: Witness) -> Iterator[str]:
    """The witness behind the plainest of servers, to be asked from this process."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer = witness.submit(parse_submission(self.rfile.read(int(self.headers["Content-Length"]))))
            match answer.decision:
                case Accepted():
                    self._send(200, answer.line)
                case Refused(code, reason, size) | SplitView(answer=Refused(code, reason, size)):
                    self._send(code, f"{size}\n" if code == 409 else reason)

        def _send(self, code: int, body: str) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            pass

    try:
        with loopback.serving(Handler) as url:
            yield url
    finally:
        witness.close()


def test_cosign_verify_and_publish_by_their_verbs(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"trainwarden/{run.folder.id}"
    keys = {name: [VerifierKey(name, run.key.public)]}
    witness = Witness(tmp_path / "w", "w/one", ONE, lambda origin: keys.get(origin, []), lambda: 9)
    named = ["--witness", W1.text]
    site = tmp_path / "site"
    with serving(witness) as url:
        for _ in range(2):
            assert run.main("log", "cosign", "last", "--witness", f"{W1.text}={url}") == 0
            told = json.loads(capsys.readouterr().out)
            assert told["witnesses"] == {"w/one": "cosigned at 1970-01-01 00:00:09 UTC"}
            run.grow(1)
        assert run.main("log", "cosign", "last", "--witness", f"{W1.text}={url}") == 0
        capsys.readouterr()
        policy = tmp_path / "policy"
        policy.write_text(f"witness a {W1.text} {url}\nwitness b {W2.text}\ngroup g 2 a b\nquorum g\n")
        assert run.main("log", "cosign", "last", "--policy", str(policy)) == 2, "too few"
        capsys.readouterr()
    run.main("verify", "last", *named)
    checks = {c["name"]: c["result"] for c in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["witnesses"]["type"] == "passed"
    assert run.main("verify", "last", *named, "--witness", W2.text) == 1
    checks = {c["name"]: c["result"] for c in json.loads(capsys.readouterr().out)["checks"]}
    assert "missing: w/two" in checks["witnesses"]["reason"]
    assert run.main("log", "publish", "last", "--to", str(site)) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cosigned"] is True
    log = TileLog.open(from_folder(site), VerifierKey(name, run.key.public))
    assert told["vkey"] == VerifierKey(name, run.key.public).text
    assert log.head.size == told["published"]["size"] == 8
    assert "\u2014 w/one " in log.head.note


def test_a_witness_that_knows_more_than_the_log_is_a_finding(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"trainwarden/{run.folder.id}"
    witness = Witness(tmp_path / "w", "w/one", ONE, lambda origin: [VerifierKey(name, run.key.public)], lambda: 9)
    shutil.copytree(run.folder.log, tmp_path / "earlier")
    run.grow(3)
    with serving(witness) as url:
        assert run.main("log", "cosign", "last", "--witness", f"{W1.text}={url}") == 0
        shutil.rmtree(run.folder.log)
        shutil.copytree(tmp_path / "earlier", run.folder.log)
        capsys.readouterr()
        assert run.main("log", "cosign", "last", "--witness", f"{W1.text}={url}") == 1
        assert "it was rolled back" in json.loads(capsys.readouterr().out)["witnesses"]["w/one"]
        run.grow(4, code=1)
        assert run.main("log", "cosign", "last", "--witness", f"{W1.text}={url}") == 1
        assert "does not accept the log's history" in json.loads(capsys.readouterr().out)["witnesses"]["w/one"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["verify", "last", "--cosignatures", "1"], "without a witness"),
        (["verify", "last", "--witness", W1.text, "--cosignatures", "2"], "cannot be demanded"),
        (["verify", "last", "--witness", W1.text, "--witness", W1.text], "named twice"),
        (["verify", "last", "--witness", "w/one"], "not a verifier key"),
        (["verify", "last", "--witness", W1.text, "--policy", "x"], "do not go with it"),
        (["verify", "last", "--policy", "/no/such/policy"], "cannot read the policy"),
        (["log", "cosign", "last", "--witness", W1.text], "no witness to ask"),
        (["log", "cosign", "last"], "no witness to ask"),
        (["log", "cosign", "last", "--witness", f"{W1.text}=https:/x"], "not a web address"),
        (["log"], "needs a command"),
    ],
)
def test_a_wrong_call_has_one_error_and_a_hint(
    run: Run, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(*words) == 3
    err = capsys.readouterr().err
    assert says in err
    assert err.count("hint:") == 1


def test_a_judgement_without_a_demand_is_an_error(run: Run) -> None:
    from trainwarden.log.witnessed import judge_cosigned

    with LogReader.open(run.folder.log, run.key.public) as log, pytest.raises(LogTampered):
        judge_cosigned(log, None, parse_policy(b"quorum none\n"))
