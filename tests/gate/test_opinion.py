"""A second opinion can add a doubt or a note, and never makes a file pass."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import pytest
import torch

from tests.gate.corpus.assemble import pickled
from tests.gate.corpus.gadgets import GADGETS
from trainwarden.cli import main
from trainwarden.gate import opinion
from trainwarden.gate.opinion import with_opinion
from trainwarden.gate.results import Clean, Scanned, Undecided
from trainwarden.gate.scan import scan_file


def test_without_fickling_it_says_that_it_was_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "a.pt")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = with_opinion(scan_file(tmp_path / "a.pt"))
    assert isinstance(told.decision, Clean)
    assert told.second.startswith("fickling: not checked")


def test_what_it_suspects_is_noted_and_what_it_calls_malicious_is_no_longer_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fickling")
    torch.save({"w": torch.ones(1), "args": argparse.Namespace(a=1)}, tmp_path / "a.pt")
    assert main(["scan", "--second-opinion", str(tmp_path / "a.pt")]) == 0
    assert "fickling: LIKELY_UNSAFE" in capsys.readouterr().out
    (tmp_path / "bad.pkl").write_bytes(pickled(GADGETS["os-system"]))
    missed = Scanned(path=str(tmp_path / "bad.pkl"), size=1, decision=Clean(kind="pickle"))  # had a scan passed it
    told = with_opinion(missed)
    assert isinstance(told.decision, Undecided)
    assert "MALICIOUS" in told.second


def test_it_is_not_asked_about_what_is_refused_and_what_it_cannot_follow_is_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.pkl").write_bytes(pickled(GADGETS["os-system"]))
    refused = scan_file(tmp_path / "bad.pkl")
    assert with_opinion(refused) == refused
    (tmp_path / "noise").write_bytes(b"no pickle")
    for failing in ("raise SystemExit(1)", "import time; time.sleep(60)", "print('[')"):
        monkeypatch.setattr(opinion, "_ASKS", failing)
        monkeypatch.setattr(opinion, "_SECONDS", 0.5)
        told = with_opinion(Scanned(path=str(tmp_path / "noise"), size=9, decision=Clean(kind="pickle")))
        assert "not checked" in told.second
