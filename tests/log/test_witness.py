"""The witness: it answers as the protocol says, never cosigns two histories, and forgets nothing that it signed."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainwarden.errors import LogError, LogLocked, LogTampered, SignatureInvalid
from trainwarden.keys import SigningKey
from trainwarden.log.cosignature import cosignatures, parse_cosignature_lines, verify_cosignature
from trainwarden.log.merkle import EMPTY_ROOT, Tree, leaf_hash
from trainwarden.log.notes import parse_head, sign_head, sign_note, split_note
from trainwarden.log.vkeys import VerifierKey
from trainwarden.log.witness import (
    MAX_BODY,
    Accepted,
    Refused,
    SplitView,
    Submission,
    format_submission,
    parse_submission,
)
from trainwarden.log.witness_state import Witness

KEY, OTHER, WITNESS = (SigningKey(bytes([i]) * 32) for i in (1, 2, 3))
ORIGIN = "trainwarden/x"
LOG = VerifierKey(ORIGIN, KEY.public)
TREE = Tree(leaf_hash(b"%d" % i) for i in range(20))
FORK = Tree(leaf_hash(b"%d" % (i if i < 5 else i + 100)) for i in range(20))


def head(size: int, tree: Tree = TREE, key: SigningKey = KEY) -> bytes:
    return sign_head(ORIGIN, size, tree.root(size), key).note.encode()


def step(old: int, size: int, tree: Tree = TREE) -> Submission:
    return Submission(old, tuple(tree.consistency_proof(old, size)) if old <= size else (), head(size, tree))


def opened(folder: Path, clock: Callable[[], int] = lambda: 1_700_000_000) -> Witness:
    return Witness(folder, "w/one", WITNESS, lambda origin: [LOG] if origin == ORIGIN else [], clock)


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return opened(tmp_path / "state")


def code(witness: Witness, submission: Submission) -> int:
    decision = witness.submit(submission).decision
    match decision:
        case Accepted():
            return 200
        case Refused():
            return decision.code
        case SplitView():
            return decision.answer.code


def test_a_log_that_grows_is_cosigned_and_the_line_verifies(witness: Witness) -> None:
    for old, size in ((0, 0), (0, 1), (1, 7), (7, 7), (7, 8), (8, 20)):
        answer = witness.submit(step(old, size))
        assert answer.decision == Accepted(parse_head(head(size)))
        (line,) = parse_cosignature_lines(answer.line.encode())
        verify_cosignature(split_note(head(size))[0], line[:-1], witness.key)


def test_the_requests_of_another_implementations_test_are_answered_the_same(tmp_path: Path) -> None:
    """The exchange in torchwood's cmd/litewitness/testdata/litewitness.txt (ISC), with 404 where it has 403."""
    origin = "sigsum.org/v1/tree/4d6d8825a6bb689d459628312889dfbb0bcd41b5211d9e1ce768b0ff0309e562"
    public = "ffdc2d4d98e4124d3feaf788c0c2f9abfd796083d1f0495437f302ec79cf100f"
    keys = {origin: [VerifierKey(origin, public)]}
    witness = Witness(tmp_path, "example.com/witness", WITNESS, lambda o: keys.get(o, []), lambda: 1)
    roots = {
        1: "KgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        3: "RcCI1Nk56ZcSmIEfIn0SleqtV7uvrlXNccFx595Iwl0=",
        5: "QrtXrQZCCvpIgsSmOsah7HdICzMLLyDfxToMql9WTjY=",
    }
    signatures = {
        1: "UgIom7fPZTqpxWWhyjWduBvTvGVqsokMbqTArsQilegKoFBJQjUFAmQ0+YeSPM3wfUQMFSzVnnNuWRTYrajXpNUbIQY=",
        3: "UgIom2VbtIcdFbwFAy1n7s6IkAxIY6J/GQOTuZF2ORV39d75cbAj2aQYwyJre36kezNobZs4SUUdrcawfAB8WVrx6go=",
        5: "UgIomw/EOJmWi0i1FQsOj+etB7F8IccFam/jgd6wzRns4QPVmyEZtdvl1U2KEmLOZ/ASRcWJi0tW90dJWAShei7sDww=",
    }
    one, two, three, four = (f"Kg{c}A" + "A" * 39 + "=" for c in "EIMQ")
    to_three = [one, two]
    to_five = [two, three, "wgiIFdZfYNv6WU1OllBKsWnLYIS/DBMqt8Uh/S4OukE=", four]

    def ask(old: int, proof: list[str], size: int, name: str = origin, signature: str = "") -> int:
        note = f"{name}\n{size}\n{roots[size]}\n\n\u2014 {name} {signature or signatures[size]}\n"
        return code(witness, parse_submission("\n".join([f"old {old}", *proof, "", note]).encode()))

    assert ask(0, [], 1) == 200
    assert ask(1, to_three, 3, signature=signatures[1]) == 403
    assert ask(1, to_three, 3, name=origin[:-1] + "3") == 404
    assert ask(1, [], 3) == 422
    assert ask(1, [one, two[:-4] + "ABA="], 3) == 422
    assert ask(1, to_three, 3) == 200
    assert ask(1, [one, "+fUDV+k970B4I3uKrqJM4aP1lloPZP8mvr2Z4wRw2LI=", four], 5) == 409
    assert ask(3, to_five, 5) == 200
    assert ask(0, [], 5) == 409


def test_every_refusal_has_the_code_of_the_protocol(witness: Witness) -> None:
    assert code(witness, step(0, 7)) == 200
    other = Submission(7, (), sign_head("another", 7, TREE.root(7), KEY).note.encode())
    assert code(witness, other) == 404
    assert code(witness, Submission(7, (), head(7, key=OTHER))) == 403
    forged = head(7).replace(b"\n7\n", b"\n8\n")
    assert code(witness, Submission(7, (), forged)) == 403
    assert code(witness, Submission(8, (), head(7))) == 400
    assert witness.submit(step(3, 9)).decision == Refused(
        409, "the latest head cosigned has size 7, the proof begins at 3", 7
    )
    assert code(witness, Submission(7, (), head(9))) == 422
    assert code(witness, Submission(7, (bytes(32),), head(7))) == 422
    assert code(witness, Submission(7, tuple(FORK.consistency_proof(7, 9)), head(9, FORK))) == 422


def test_the_empty_tree_has_one_root_and_nothing_to_prove(witness: Witness) -> None:
    wrong = sign_head(ORIGIN, 0, bytes(32), KEY).note.encode()
    assert code(witness, Submission(0, (), wrong)) == 422
    assert code(witness, Submission(0, (bytes(32),), head(3))) == 422
    assert code(witness, Submission(0, (), sign_head(ORIGIN, 0, EMPTY_ROOT, KEY).note.encode())) == 200
    assert code(witness, step(0, 3)) == 200


def test_a_rollback_is_refused(witness: Witness) -> None:
    assert code(witness, step(0, 9)) == 200
    for old, size in ((0, 8), (8, 8), (7, 8), (0, 1), (0, 0)):
        assert code(witness, step(old, size)) == 409
    assert code(witness, Submission(9, (), head(8))) == 400


@pytest.mark.parametrize("old", [0, 5, 9])
def test_a_split_view_is_refused_and_both_heads_are_kept(old: int, witness: Witness, tmp_path: Path) -> None:
    assert code(witness, step(0, 9)) == 200
    found = witness.submit(step(old, 9, FORK)).decision
    assert isinstance(found, SplitView)
    assert found.answer.code == (422 if old == 9 else 409)
    assert (found.kept.root, found.head.root) == (TREE.root(9).hex(), FORK.root(9).hex())
    (kept,) = (tmp_path / "state").glob("*/evidence/*")
    assert head(9, FORK) in kept.read_bytes()
    assert cosignatures(kept.read_bytes().partition(head(9, FORK))[0][:-1], [witness.key])
    witness.submit(step(old, 9, FORK))
    assert len(list((tmp_path / "state").glob("*/evidence/*"))) == 1, "the same head fills no disk"
    assert code(witness, step(9, 9)) == 200, "the cosigned history goes on"


def test_a_forged_head_is_no_evidence_against_the_log(witness: Witness, tmp_path: Path) -> None:
    assert code(witness, step(0, 9)) == 200
    assert code(witness, Submission(9, (), head(9, FORK, OTHER))) == 403
    assert not list((tmp_path / "state").glob("*/evidence/*"))


def test_two_logs_do_not_mix(tmp_path: Path) -> None:
    keys = {"a": [VerifierKey("a", KEY.public)], "b": [VerifierKey("b", KEY.public)]}
    witness = Witness(tmp_path, "w", WITNESS, lambda origin: keys.get(origin, []), lambda: 5)
    for origin in keys:
        note = sign_head(origin, 3, TREE.root(3), KEY).note.encode()
        assert code(witness, Submission(0, (), note)) == 200
    note = sign_note(f"a\n4\n{split_note(head(4))[0].splitlines()[2]}\n", "b", KEY).encode()
    assert code(witness, Submission(3, tuple(TREE.consistency_proof(3, 4)), note)) == 403


def test_a_log_with_an_old_and_a_new_key_is_known_by_either(tmp_path: Path) -> None:
    both = [LOG, VerifierKey(ORIGIN, OTHER.public)]
    witness = Witness(tmp_path, "w", WITNESS, lambda origin: both, lambda: 5)
    assert code(witness, step(0, 3)) == 200
    proof = tuple(TREE.consistency_proof(3, 4))
    assert code(witness, Submission(3, proof, head(4, key=OTHER))) == 200
    wrong_line = head(5, key=OTHER).rpartition(b"\n\n")[2]
    assert code(witness, Submission(4, (), head(4) + wrong_line)) == 403, "one that does not verify spoils the note"


def test_the_served_checkpoint_has_the_logs_and_the_witnesss_signature_only(witness: Witness) -> None:
    stranger = sign_note(split_note(head(7))[0], "stranger", OTHER).split("\n\n")[1].encode()
    answer = witness.submit(Submission(0, (), head(7) + stranger))
    name = hashlib.sha256(ORIGIN.encode()).hexdigest()
    assert witness.checkpoint(name) == head(7) + answer.line.encode()
    for wrong in ("", "../x", "0" * 64, name.upper(), name + "/", "lock"):
        assert witness.checkpoint(wrong) is None


def test_time_never_goes_back(tmp_path: Path) -> None:
    now = [1000]
    witness = opened(tmp_path, lambda: now[0])
    times = []
    for old, size, clock in ((0, 1, 1000), (1, 2, 10), (2, 3, -5), (3, 4, 2000)):
        now[0] = clock
        line = witness.submit(step(old, size)).line[:-1]
        times.append(verify_cosignature(split_note(head(size))[0], line, witness.key).time)
    assert times == [1000, 1000, 1000, 2000]


def test_what_was_cosigned_outlives_the_process(tmp_path: Path) -> None:
    first = opened(tmp_path)
    assert code(first, step(0, 9)) == 200
    with pytest.raises(LogLocked, match="another process"):
        opened(tmp_path)
    first.close()
    second = opened(tmp_path)
    assert code(second, step(0, 7)) == 409
    assert code(second, step(9, 12)) == 200


@pytest.mark.parametrize("damage", ["", "garbage\n", "other key", "other log"])
def test_a_memory_that_was_changed_is_not_gone_on_from(damage: str, tmp_path: Path) -> None:
    witness = opened(tmp_path)
    assert code(witness, step(0, 9)) == 200
    (file,) = tmp_path.glob("*/checkpoint")
    file.write_bytes(
        {
            "other key": head(9, FORK),
            "other log": file.read_bytes().replace(ORIGIN.encode(), b"trainwarden/y"),
        }.get(damage, damage.encode())
    )
    with pytest.raises((LogTampered, SignatureInvalid)):
        witness.submit(step(0, 3))


class Crash(BaseException):
    """The process died here."""


@pytest.mark.parametrize("persisted", [False, True])
@pytest.mark.parametrize("at", range(14))
def test_killed_at_every_step_of_a_write_nothing_cosigned_is_forgotten(
    at: int, persisted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crash lies before (`persisted` false) or after the system call number `at` of two submissions."""
    witness, left, released = opened(tmp_path), [at], {}

    def dying(name: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **named: object) -> object:
            left[0] -= 1
            if left[0] == -1 and not persisted:
                raise Crash
            done = real(*args, **named)
            if left[0] == -1:
                raise Crash
            return done

        monkeypatch.setattr(os, name, call)

    for name in ("write", "fsync", "replace", "mkdir"):
        dying(name)
    try:
        for old, size in ((0, 5), (5, 9)):
            answer = witness.submit(step(old, size))
            released[size] = answer.line
        died = False
    except Crash:
        died = True
    monkeypatch.undo()
    witness.close()
    assert died or at >= 8
    again = opened(tmp_path)
    newest = max(released, default=0)
    for size in range(newest):
        assert code(again, step(0, size)) == 409, "a head was cosigned beyond it"
    if newest == 9:
        assert isinstance(again.submit(step(9, 9, FORK)).decision, SplitView)
    answer = again.submit(step(newest, 9))
    if isinstance(answer.decision, Refused):  # what was kept was not released: the log learns of it and goes on
        assert answer.decision.code == 409
        assert answer.decision.size > newest
        answer = again.submit(step(answer.decision.size, 9))
    assert isinstance(answer.decision, Accepted)
    assert code(again, step(9, 12)) == 200


def test_a_full_disk_means_no_cosignature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    witness = opened(tmp_path)
    assert code(witness, step(0, 5)) == 200

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LogError, match="No space left"):
        witness.submit(step(5, 9))
    monkeypatch.undo()
    assert code(witness, step(5, 9)) == 200


def test_of_two_histories_at_once_one_is_cosigned(tmp_path: Path) -> None:
    witness = opened(tmp_path)
    assert code(witness, step(0, 5)) == 200
    got: list[str] = []
    start = threading.Barrier(8)

    def ask(tree: Tree) -> None:
        start.wait()
        if line := witness.submit(step(5, 9, tree)).line:
            got.append(tree.root(9).hex() + line)

    threads = [threading.Thread(target=ask, args=(tree,)) for tree in (TREE, FORK) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({line[:64] for line in got}) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"old 1",
        b"old 1\n",
        b"new 1\n\n" + head(3),
        b"old  1\n\n" + head(3),
        b"old 01\n\n" + head(3),
        b"old -1\n\n" + head(3),
        b"old +1\n\n" + head(3),
        b"old 1 \n\n" + head(3),
        b"old 1\r\n\r\n" + head(3),
        b"old 99999999999999999999\n\n" + head(3),
        b"old 1\nAAAA\n\n" + head(3),
        b"old 1\n\n\n" + head(3),
        b"old 1\n" + b"A" * 43 + b"=\n" * 1 + b"*\n\n" + head(3),
        b"old 1\n" + (b"A" * 43 + b"=\n") * 64 + b"\n" + head(3),
        b"old 1\n\nno note\n",
        b"old 1\n\n" + head(3)[:-1],
        "old \u0661\n\n".encode() + head(3),
        bytes(MAX_BODY + 1),
    ],
)
def test_a_malformed_request_is_refused(body: bytes) -> None:
    with pytest.raises(LogTampered):
        parse_submission(body)


def test_63_hashes_are_read() -> None:
    submission = Submission(1, (bytes(32),) * 63, head(3))
    assert parse_submission(format_submission(submission)) == submission


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**62), st.lists(st.binary(min_size=32, max_size=32), max_size=63), st.binary(max_size=60))
@example(0, [], b"")
def test_a_request_comes_back_and_any_change_is_another_or_refused(old: int, proof: list[bytes], junk: bytes) -> None:
    body = format_submission(Submission(old, tuple(proof), head(3)))
    assert parse_submission(body) == Submission(old, tuple(proof), head(3))
    at = len(junk) * 7 % len(body)
    changed = body[:at] + junk + body[at:]
    try:
        assert format_submission(parse_submission(changed)) == changed
    except LogTampered:
        pass
