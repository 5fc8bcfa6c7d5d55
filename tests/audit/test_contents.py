"""A replay's checkpoint is the recorded one when it says the same, but for where the replay was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainwarden.audit.contents import content_digest, same_but_for_places

PLACE = "/room/replay-1/abs"


def saved(path: Path, where: str, weight: float = 1.0, **more: object) -> Path:
    state = {"best": f"{where}/job/best.ckpt", "weights": torch.full((4,), weight), "epoch": 3, **more}
    torch.save(state, path)
    return path


def test_a_checkpoint_that_names_its_own_place_is_the_recorded_one(tmp_path: Path) -> None:
    recorded, replayed = saved(tmp_path / "a.ckpt", ""), saved(tmp_path / "b.ckpt", PLACE)
    assert content_digest(recorded, "torch") != content_digest(replayed, "torch")
    assert same_but_for_places(recorded, replayed, (PLACE,))
    assert not same_but_for_places(recorded, replayed, ("/room/replay-2/abs",))


@pytest.mark.parametrize(
    "other", [{"weight": 2.0}, {"epoch": 4}, {"best": "/job/other.ckpt"}, {"added": torch.zeros(1)}], ids=str
)
def test_any_other_difference_is_one(tmp_path: Path, other: dict[str, object]) -> None:
    recorded, replayed = saved(tmp_path / "a.ckpt", ""), saved(tmp_path / "b.ckpt", PLACE, **other)  # type: ignore[arg-type]
    assert not same_but_for_places(recorded, replayed, (PLACE,))


def test_what_is_no_zip_is_compared_by_its_bytes_alone(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('"/job"')
    (tmp_path / "b.json").write_text(f'"{PLACE}/job"')
    assert not same_but_for_places(tmp_path / "a.json", tmp_path / "b.json", (PLACE,))
