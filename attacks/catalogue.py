"""Every technique, registered one a line. To add one: docs/attacks.md, "Add an attack"."""

from __future__ import annotations

from attacks import (
    t01_library_patch,
    t03_startup_hook,
    t04_monkeypatch,
    t09_seed_override,
    t20_state_reset,
    t22_rank_sign_flip,
    t28_sleep,
    t30_weight_edit,
    t34_kill_or_hog,
)

TECHNIQUES = (
    t01_library_patch.TECHNIQUE,
    t03_startup_hook.TECHNIQUE,
    t04_monkeypatch.TECHNIQUE,
    t09_seed_override.TECHNIQUE,
    t20_state_reset.TECHNIQUE,
    t22_rank_sign_flip.TECHNIQUE,
    t28_sleep.TECHNIQUE,
    t30_weight_edit.TECHNIQUE,
    t34_kill_or_hog.TECHNIQUE,
)
