"""What a loss counts: bands of shares, and targets against what the model is given."""

from __future__ import annotations

import random

from trainwarden.record.observers.losses import IN_A_ROW, LEARNED, Band, Fit


def test_a_share_that_drops_is_told_at_the_last_step_of_a_row() -> None:
    band, draws = Band(), random.Random(1)
    assert not any(band.leaves(0.9 + 0.05 * draws.random()) for _ in range(2 * LEARNED))
    assert [band.leaves(0.5) for _ in range(IN_A_ROW)] == [False] * (IN_A_ROW - 1) + [True]


def test_shares_that_always_stray_are_in_their_band() -> None:
    band, draws = Band(), random.Random(1)
    assert not any(band.leaves(draws.random()) for _ in range(500))


def test_one_target_less_in_every_batch_is_told() -> None:
    fit = Fit()
    assert not any(fit.leaves(512, 512, 8) for _ in range(LEARNED))
    assert [fit.leaves(511, 512, 8) for _ in range(IN_A_ROW)] == [False] * (IN_A_ROW - 1) + [True]


def test_batches_and_sequences_of_other_sizes_are_silent() -> None:
    fit, draws = Fit(), random.Random(1)
    for _ in range(300):  # labels shifted within the model: one target less for each row
        rows, length = draws.randint(1, 8), draws.randint(4, 64)
        assert not fit.leaves(rows * (length - 1), rows * length, rows)
    same = Fit()
    assert not any(same.leaves(n * 64, n * 64, n) for n in (8,) * 40 + (3,) * 9)


def test_targets_that_are_chosen_by_a_mask_are_never_learned() -> None:
    fit, draws = Fit(), random.Random(1)
    assert not any(fit.leaves(draws.randint(1, 500), 512, 8) for _ in range(500))
