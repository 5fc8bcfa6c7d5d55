"""`trainwarden run` under a policy: refused until two actors approved, run under that seal, refused after an edit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from supervised import Place, of_kind

from trainwarden.model import Approved

POLICY = '[seal]\napprovals = 2\napprovers = ["ada", "bob", "reviewer"]\n'


def test_a_run_waits_for_its_approvals_and_tells_who_gave_them(place: Place, job: Path, tmp_path: Path) -> None:
    own = Place(place.python, place.site, tmp_path / "store", tmp_path / "config" / "key")
    env = own.env()  # the same for all: variables are part of the seal

    def verb(*words: str, code: int = 0) -> str:
        argv = [sys.executable, "-m", "trainwarden.cli", words[0], "--store", str(own.store), *words[1:]]
        done = subprocess.run(argv, cwd=job, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        return done.stdout or done.stderr

    (job / "train.py").write_text("print('trained')\n")
    (job / "trainwarden.toml").write_text(POLICY)
    for name, kind in (("ada", "person"), ("bob", "person"), ("reviewer", "agent")):
        verb("keys", "new", name, "--kind", kind)
    assert "every seal needs at least 2 of ada, bob, reviewer" in verb("keys", "require", "2", "ada", "bob", "reviewer")

    digest = verb("seal", "--", str(own.python), "train.py").split()[0]
    refused = own.run(job, str(own.python), "train.py")
    assert (refused.code, refused.out) == (1, "")
    assert f"seal {digest[:12]} has 0 of 2 approvals" in refused.err
    assert f"hint: trainwarden approve {digest[:12]} --as ada" in refused.err
    verb("approve", digest, "--as", "ada")
    assert "may run" in verb("approve", digest[:10], "--as", "reviewer")

    ended = own.run(job, str(own.python), "train.py", options=("--json",))
    assert (ended.code, ended.out.splitlines()[0]) == (0, "trained")
    (entry,) = of_kind(ended.entries, Approved)
    assert (entry.seal, [a.actor for a in entry.approvals]) == (digest, ["ada", "reviewer"])
    assert "by ada, reviewer; 2 of ada, bob, reviewer" in verb("show", "last")
    checks = json.loads(verb("verify", "last", "--json"))["checks"]
    (approvals,) = (c["result"] for c in checks if c["name"] == "approvals")
    assert approvals["type"] == "passed"
    assert "ada, reviewer" in approvals["seen"]

    verb("keys", "revoke", "reviewer", "--reason", "stolen", "--since", "2020-01-01T00:00")
    checks = json.loads(verb("verify", "last", "--json", code=1))["checks"]
    assert (
        "revoked as of before the run began" in next(c["result"] for c in checks if c["name"] == "approvals")["reason"]
    )

    (job / "trainwarden.toml").write_text("")
    edited = own.run(job, str(own.python), "train.py")
    assert edited.code == 1
    assert "this store demands 2 approvals of ada, bob, reviewer" in edited.err
    (job / "trainwarden.toml").write_text(POLICY)
    (job / "train.py").write_text("print('something else')\n")
    changed = own.run(job, str(own.python), "train.py")
    assert changed.code == 1
    assert "has 0 of 2 approvals" in changed.err
    assert "trained" not in changed.out + ended.out.splitlines()[-1]
