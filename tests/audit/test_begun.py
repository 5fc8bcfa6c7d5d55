"""The weights that a step began with: what a record says of them is used only where it holds together."""

from __future__ import annotations

import msgspec
import pytest

from trainwarden.audit.begun import begun
from trainwarden.audit.compare import Seen, first_difference
from trainwarden.model import Detail, Location, Stage, StageDigest, StepRecord, canonical, decode_entry
from trainwarden.record.continuity import CONTINUITY_BYTES, in_turns
from trainwarden.record.fingerprint import stage_root

KEY = bytes(32)
LEFT = Detail(names=("a", "b", "buffer/n"), digests=(b"a" * 16, b"b" * 16, b"n" * 16))
NOW = {"a": b"a" * 16, "b": b"x" * 16}


def record(found: dict[str, str], before: str | None = None, loss: str = "l") -> StepRecord:
    root = stage_root(KEY, NOW, NOW.values()) if before is None else before
    stages = {Stage.ACTIVATIONS: StageDigest(root=loss, tensors=1)}
    return StepRecord(attempt=0, rank=0, world=1, step=6, optimizer=0, seq=6, stages=stages, before=root, found=found)


def test_tensors_found_changed_are_put_in_the_place_of_those_left() -> None:
    said = record({"b": (b"x" * 16).hex()})
    assert begun(KEY, said, LEFT) == Detail(names=("a", "b"), digests=tuple(NOW.values()))
    assert decode_entry(canonical(said)) == said


@pytest.mark.parametrize(
    "said",
    [
        record({}),  # keeps the edit back
        record({"a": (b"x" * 16).hex()}),  # blames another tensor
        record({"b": (b"x" * 16).hex(), "c": "00"}),  # adds one that is not there
        record({"b": "no digest"}),
        record({"b": (b"x" * 16).hex()}, before=""),
    ],
)
def test_a_record_that_contradicts_its_own_root_names_no_tensor(said: StepRecord) -> None:
    assert begun(KEY, said, LEFT) is None
    clean = record({}, before="clean")
    at = first_difference([Seen(record=said, details={})], [Seen(record=clean, details={})])
    if said.before:
        assert (at.before, at.tensor, at.recorded) == (True, "", said.before)  # type: ignore[union-attr]
    else:
        assert at is None


def test_an_edit_before_the_step_comes_before_every_stage_of_it() -> None:
    was, now = record({}, loss="tampered"), record({}, before="clean", loss="clean")
    old = Seen(record=was, details={}, start=Detail(names=("a", "b"), digests=tuple(NOW.values())))
    new = Seen(record=now, details={}, start=Detail(names=LEFT.names[:2], digests=LEFT.digests[:2]))
    at = first_difference([old], [new])
    assert at is not None
    assert (at.stage, at.before, at.tensor, at.tensors, at.order) == (Stage.WEIGHTS, True, "b", ("b",), -1)
    assert (at.recorded, at.replayed) == ((b"x" * 16).hex(), (b"b" * 16).hex())


def test_an_account_that_keeps_the_weights_back_is_compared_in_what_it_computed() -> None:
    silent = record({}, before="", loss="tampered")
    clean = record({}, loss="clean")
    at = first_difference([Seen(record=silent, details={})], [Seen(record=clean, details={})])
    assert at is not None
    assert (at.stage, at.before) == (Stage.ACTIVATIONS, False)


def test_a_location_before_the_step_is_not_one_after_it() -> None:
    after = Location(step=1, rank=0, stage=Stage.WEIGHTS, tensor="a")
    before = msgspec.structs.replace(after, before=True)
    assert before.order < after.order
    assert (before.words, after.words) == ("weights of a, changed before the step", "weights of a")


def test_every_tensor_has_its_turn_within_the_budget() -> None:
    sizes = [CONTINUITY_BYTES // 2, CONTINUITY_BYTES // 2, 1, 3 * CONTINUITY_BYTES, 0, 5]
    shares = in_turns(sizes)
    assert [i for share in shares for i in share] == list(range(len(sizes)))
    assert all(len(s) == 1 or sum(sizes[i] for i in s) <= CONTINUITY_BYTES for s in shares)
    assert in_turns([10, 20]) == [range(2)]
    assert list(in_turns([])[0]) == []
