"""Kept states: bounded in time, in number and in space."""

from __future__ import annotations

from trainwarden.record.snapshots import FULL_KEPT, spacing, too_old


def test_states_are_kept_as_often_as_their_share_of_training_time_allows() -> None:
    assert spacing(50, 0.01, 0.4, 0.001) == 50
    assert spacing(50, 0.05, 0.4, 0.001) == 200, "doubled, so that ranks with other costs meet"
    assert spacing(5, 10.0, 0.001, 0.0) == 5, "without a share, as often as it is asked for"
    pair, step = 0.3, 0.1
    assert pair <= 0.001 * step * spacing(10, pair, step, 0.001)


def test_the_newest_states_are_kept_within_count_and_space() -> None:
    many = [(f"full-{i:08d}", 10) for i in range(FULL_KEPT + 5)]
    assert sorted(too_old(many, 10_000, set())) == [n for n, _ in many[:5]]
    assert sorted(too_old(many, 100, set())) == [n for n, _ in many[:-10]]
    assert len(many) - len(too_old(many, 0, set())) == 4, "a few whatever they take"


def test_a_rank_lets_go_what_rank_0_has_let_go() -> None:
    mine = [(f"full-{i:08d}", 1) for i in (50, 100, 150, 200, 250)]
    assert sorted(too_old(mine, 1000, {"full-00000100", "full-00000200"})) == ["full-00000050", "full-00000150"]
    assert too_old(mine, 1000, set()) == [], "rank 0 is on another host: nothing is known of it"
