"""`trainwarden keys` as a whole: what it makes and says, and that a wrong call leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainwarden.cli import main


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "config" / "key"))
    monkeypatch.setenv("TRAINWARDEN_STORE", str(tmp_path / "store"))


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, object]:
    assert main(["keys", "--json", *words]) == code
    return dict(json.loads(capsys.readouterr().out))


def test_new_rotate_revoke_and_require_as_the_list_tells_them(capsys: pytest.CaptureFixture[str]) -> None:
    made = told(capsys, "new", "ada")["actors"][0]["actor"]  # type: ignore[index]
    agent = told(capsys, "new", "reviewer", "--kind", "agent")["actors"][0]["actor"]  # type: ignore[index]
    assert (made["kind"], agent["kind"]) == ("person", "agent")
    rotated = told(capsys, "rotate", "ada")["actors"][0]["actor"]  # type: ignore[index]
    assert rotated["key"] != made["key"]
    assert told(capsys, "rotate", "ada")["actors"][0]["actor"]["key"] != rotated["key"]  # type: ignore[index]
    assert told(capsys, "require", "2", "ada", "reviewer")["policy"]["approvals"] == 2  # type: ignore[index]
    told(capsys, "revoke", "reviewer", "--reason", "leaked")
    listed = told(capsys, "list")
    assert [bool(a["revoked"]) for a in listed["actors"]] == [False, True]  # type: ignore[attr-defined]
    assert listed["entries"] == 7


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("new",),
        ("new", "a", "b"),
        ("new", "../x"),
        ("new", "ada", "--public", "zz"),
        ("rotate", "nobody"),
        ("require", "two"),
        ("revoke", "nobody"),
    ],
    ids=" ".join,
)
def test_a_wrong_call_is_one_error_with_a_hint(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    assert main(["keys", *words]) == 3
    err = capsys.readouterr().err
    assert (err.count("error:"), err.count("hint:")) == (1, 1)


def test_an_enrolment_that_fails_leaves_no_key_behind(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(capsys, "new", "ada")
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "other" / "key"))
    assert "is kept by" in str(told(capsys, "new", "mallory", code=3)["error"])
    assert not (tmp_path / "other" / "keys" / "mallory").exists()
