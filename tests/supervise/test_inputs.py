"""The desk that judges batches: what is found, and the honest data sets that are not accused."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from trainwarden import wire
from trainwarden.errors import UsageError
from trainwarden.model import DataDiffers, Entry, Gap, PassSeen
from trainwarden.store import RunDir
from trainwarden.supervise import samples
from trainwarden.supervise.inputs import MOST_TABLES, InputDesk
from trainwarden.supervise.order import Permutations

NAMES = ("0", "1")


class Entries:
    """Stands for a ledger."""

    def __init__(self) -> None:
        self.all: list[Entry] = []

    def submit(self, entry: Entry) -> None:
        self.all.append(entry)


class Room:
    """A desk, and the ranks that tell it of their passes."""

    def __init__(self, folder: Path, manifest: samples.Table | None = None) -> None:
        self.run = RunDir(id="r", path=folder)
        self.run.private.mkdir(exist_ok=True, parents=True)
        self.ledger = Entries()
        self.desk = InputDesk(self.ledger, self.run, manifest)  # type: ignore[arg-type]
        self.numbers = 0

    def epoch(
        self,
        given: list[int],
        sample: Callable[[int, int], tuple[str, str]] = lambda index, part: (f"{index} {part}", "shape"),
        *,
        rank: int = 0,
        ended: bool = True,
        batch: int = 8,
        **facts: object,
    ) -> None:
        number, self.numbers = self.numbers, self.numbers + 1
        known = {"dataset": "job.Text", "sampler": "S", "order": "sequential", "samples": len(given), "data": 0} | facts
        self.say(rank, wire.Pass(step=0, number=number, loader=0, batch=batch, **known))  # type: ignore[arg-type]
        for n, at in enumerate(range(0, len(given), batch)):
            indexes = given[at : at + batch]
            digests = b"".join(digest(*sample(i, part)) for i in indexes for part in range(len(NAMES)))
            self.say(
                rank,
                wire.Given(
                    step=n,
                    number=number,
                    batch=n,
                    indexes=array("q", indexes).tobytes(),
                    names=NAMES,
                    rows=array("I", range(len(indexes))).tobytes(),
                    digests=digests,
                ),
            )
        if ended:
            self.say(rank, wire.Given(step=9, number=number, batch=-(-len(given) // batch), ended=True))

    def say(self, rank: int, message: wire.Pass | wire.Given) -> None:
        self.desk.seen(0, rank, message.step, message)

    def closed(self) -> list[Entry]:
        self.desk.close()
        assert [e for e in self.ledger.all if isinstance(e, Gap)] == []
        return self.ledger.all

    def wrong(self) -> list[DataDiffers]:
        return [e for e in self.closed() if isinstance(e, DataDiffers)]


def digest(content: str, shape: str) -> bytes:
    return blake3(shape.encode()).digest(4) + blake3(content.encode()).digest(12)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def shuffled(n: int, seed: int) -> list[int]:
    order = Permutations().of_seed(n, seed)
    return [order[i] for i in range(n)]


def test_honest_epochs_are_checked_whole_and_logged_a_few_times(room: Room) -> None:
    for epoch in range(20):
        room.epoch(shuffled(96, 7 + epoch), order="distributed", seed=7, epoch=epoch)
    entries = room.closed()
    assert all(isinstance(e, PassSeen) for e in entries), entries
    assert len(entries) == 1 + 5, "the first as it begins, and passes 1, 2, 4, 8 and 16 at their end"
    last = entries[-1]
    assert isinstance(last, PassSeen)
    assert (last.batches, last.ordered, last.compared, last.unordered) == (12, 12, 96, "")


@pytest.mark.parametrize("place", [0, 17, 95])
def test_two_samples_in_each_others_place_are_found(room: Room, place: int) -> None:
    order = shuffled(96, 7)
    other = place - 5 if place else 3
    order[place], order[other] = order[other], order[place]
    room.epoch(order, order="distributed", seed=7)
    (found,) = room.wrong()
    first = min(place, other)
    assert (found.kind, found.batch, found.found) == ("order", first // 8, order[first])
    assert found.expected == shuffled(96, 7)[first]


def test_an_epoch_that_drops_or_repeats_samples_is_found(room: Room) -> None:
    room.epoch(list(range(80)), samples=96)
    room.epoch([*range(96), 3], samples=96)
    assert [(e.kind, e.expected, e.found) for e in room.wrong()] == [("lost", 96, 80), ("order", -1, 3)]


def test_batches_of_another_size_are_found(room: Room) -> None:
    room.epoch(list(range(96)), batch=8)
    room.say(0, wire.Pass(step=0, number=90, loader=3, data=0, dataset="d", sampler="S", order="sequential",
                          samples=96, batch=8))  # fmt: skip
    for n, part in enumerate((range(4), range(4, 12))):
        room.say(0, wire.Given(step=0, number=90, batch=n, indexes=array("q", part).tobytes()))
    assert [e.kind for e in room.wrong()] == ["order"]


def test_epochs_that_end_early_drop_a_last_batch_or_start_late_are_honest(room: Room) -> None:
    room.epoch(shuffled(96, 7)[:40], order="distributed", seed=7, samples=96, ended=False)
    room.epoch(list(range(88)), samples=95, drop_last=True)
    room.epoch(shuffled(96, 7)[24:], order="distributed", seed=7, samples=96, exact=False)
    assert room.wrong() == []


def test_a_class_with_an_order_of_its_own_is_not_accused(room: Room) -> None:
    mixed = list(range(96))
    random.Random(1).shuffle(mixed)
    room.epoch(mixed, exact=False)
    room.epoch([0, *mixed], exact=False, batch=1, samples=96)
    entries = room.closed()
    assert all(isinstance(e, PassSeen) for e in entries)
    assert any(isinstance(e, PassSeen) and "an order of its own" in e.unordered for e in entries)


def test_a_class_that_leaves_the_order_it_was_found_in_is_told_as_such(room: Room) -> None:
    room.epoch([*range(64), 3, 2, 1, 0, *range(68, 96)], exact=False)
    (found,) = room.wrong()
    assert (found.kind, found.exact) == ("order", False)


def test_a_relabelled_sample_is_told_with_the_part_that_differs(room: Room) -> None:
    order = list(range(96))
    room.epoch(order)
    room.epoch(order, lambda i, part: (f"{i} {part}{'!' if i == 33 and part else ''}", "shape"))
    (found,) = room.wrong()
    assert (found.kind, found.index, found.parts, found.same) == ("changed", 33, ("1",), ("0",))


def test_many_labels_that_change_after_a_steady_epoch_are_found(room: Room) -> None:
    order = list(range(96))
    for _ in range(2):
        room.epoch(order)
    room.epoch(order, lambda i, part: (f"{i} {part}{'!' if part else ''}", "shape"))
    found = room.wrong()
    assert {e.kind for e in found} == {"changed"}
    assert len(found) == 8, "no more are told one by one"


def test_augmentation_and_other_padding_are_not_accused(room: Room) -> None:
    order = list(range(96))
    draws = random.Random(1)
    for _ in range(3):
        room.epoch(order, lambda i, part: (f"{i} {draws.random() < 0.3}", "shape"), data=0)
    entries = room.closed()
    assert all(isinstance(e, PassSeen) for e in entries), entries
    assert any(isinstance(e, PassSeen) and "augmentation" in e.uncompared for e in entries)


def test_another_padding_of_the_same_sample_is_not_compared(room: Room) -> None:
    for length in range(3):
        room.epoch(list(range(96)), lambda i, part, length=length: (f"{i} {length}", f"{length}"))  # type: ignore[misc]
    assert room.wrong() == []


def test_ranks_share_what_a_sample_was_where_one_data_set_is_divided(room: Room) -> None:
    half = [shuffled(96, 7)[rank::2] for rank in (0, 1)]
    facts = {"order": "distributed", "seed": 7, "replicas": 2, "samples": 96}
    for rank in (0, 1):
        room.epoch(half[rank], rank=rank, part=rank, **facts)
    swapped = [shuffled(96, 8)[rank::2] for rank in (0, 1)]
    room.epoch(swapped[0], lambda i, part: (f"{i} {part}{'!' if i == swapped[0][5] else ''}", "shape"), part=0,
               epoch=1, **facts)  # fmt: skip
    room.epoch(swapped[1], rank=1, part=1, epoch=1, **facts)
    (found,) = room.wrong()
    assert (found.kind, found.index) == ("changed", swapped[0][5])


def test_a_manifest_from_one_run_finds_a_poisoned_sample_in_another(tmp_path: Path) -> None:
    trusted = Room(tmp_path / "one")
    trusted.epoch(list(range(96)))
    trusted.closed()
    table, _ = samples.read_manifest(samples.kept_in(trusted.run.private))
    assert sum(table.seen) == 96
    honest = Room(tmp_path / "two", table)
    honest.epoch(list(range(96)))
    assert honest.wrong() == []
    assert next(e for e in honest.ledger.all if isinstance(e, PassSeen) and e.ended).listed == 96
    poisoned = Room(tmp_path / "three", table)
    poisoned.epoch(list(range(96)), lambda i, part: (f"{i} {part}{'!' if i == 7 else ''}", "shape"))
    (found,) = poisoned.wrong()
    assert (found.kind, found.index, found.parts) == ("manifest", 7, NAMES)


def test_a_manifest_that_nothing_was_compared_with_is_a_gap(tmp_path: Path) -> None:
    table = samples.Table(NAMES, 12)
    for told in (True, False):
        room = Room(tmp_path / str(told), table)
        room.desk.joined()
        if told:
            room.epoch(list(range(96)))
        room.desk.close()
        (gap,) = [e for e in room.ledger.all if isinstance(e, Gap)]
        assert "no sample of the run was compared" in gap.reason


def test_a_data_set_half_of_which_is_copies_is_told(room: Room) -> None:
    room.epoch(list(range(96)), lambda i, part: (f"{i % 48} {part}", "shape"))
    (found,) = room.wrong()
    assert (found.kind, found.expected, found.found) == ("copies", 96, 48)


def test_a_toy_of_one_constant_sample_is_not_told(room: Room) -> None:
    room.epoch(list(range(96)), lambda i, part: ("1", "shape"))
    assert room.wrong() == []


def test_more_data_sets_than_are_kept_is_said(room: Room) -> None:
    for data in range(MOST_TABLES + 1):
        room.epoch(list(range(16)), data=data, ended=False, dataset=f"d{data}")
    last = [e for e in room.closed() if isinstance(e, PassSeen)]
    assert last


@pytest.mark.parametrize("text", ["", "{}", '{"format": "trainwarden-samples", "version": 2}', "\x00", "[" * 9999,
                                  '{"format":"trainwarden-samples","version":1,"names":["a"],"samples":1,"varying":[]}\nff']
)  # fmt: skip
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s").write_text(text)
    with pytest.raises(UsageError, match="no manifest of samples"):
        samples.read_manifest(tmp_path / "s")


def test_a_rank_that_sends_nonsense_is_a_gap_and_the_desk_goes_on(room: Room) -> None:
    room.say(0, wire.Pass(step=0, number=0, loader=0, data=0, dataset="d", sampler="S", order="random", samples=9,
                          batch=8, state=b"nonsense"))  # fmt: skip
    room.say(0, wire.Pass(step=0, number=1, loader=1, data=0, dataset="d", sampler="S", order="sequential", samples=9,
                          batch=8))  # fmt: skip
    room.say(0, wire.Given(step=0, number=1, batch=0, indexes=b"123"))
    room.say(0, wire.Given(step=0, number=1, batch=0, indexes=array("q", [5]).tobytes(), names=("a",), rows=b"1234"))
    room.epoch([1, 0, *range(2, 96)])
    room.desk.close()
    assert sum(isinstance(e, Gap) for e in room.ledger.all) == 3
    assert any(isinstance(e, DataDiffers) for e in room.ledger.all)
