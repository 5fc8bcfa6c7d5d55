"""A whole attack on the toy job of two ranks: the honest run is silent, the struck one is found at the right step."""

from __future__ import annotations

from pathlib import Path

from trainwarden.redteam.catalogue import find, load
from trainwarden.redteam.place import Range
from trainwarden.redteam.trial import attack, honest
from trainwarden.redteam.workloads import workload


def test_an_edit_of_memory_is_carried_out_found_at_its_step_and_leaves_the_copy_as_it_was(tmp_path: Path) -> None:
    technique, variant = find(load(), "30/memory")
    assert variant is not None
    with Range(tmp_path / "range", workload("toy")) as place:
        place.open()
        before = sorted(p.name for p in place.site.iterdir())
        measured, row = honest(place, lambda what, step: None)
        assert row is not None
        assert (row.verdict, row.found, measured.steps) == ("silent", (), 40)
        found = attack(place, technique, variant, audit=False, say=lambda what, step: None)
        assert (found.verdict, found.worked, found.false) == ("found", True, ()), found
        assert [(m.rank, m.step) for m in found.marks] == [(0, 20), (1, 20)], (
            "both ranks, at the step that was asked for"
        )
        (continuity,) = [f for f in found.found if f.by == "continuity"]
        assert (continuity.exact, continuity.step) == (True, 20)
        assert found.effect.weights_differ
        place.clean_up()
        assert sorted(p.name for p in place.site.iterdir()) == before
