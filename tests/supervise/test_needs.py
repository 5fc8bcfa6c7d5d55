"""A training environment in which nothing could be recorded is told before the start, with the command that helps."""

from __future__ import annotations

import pytest

from trainwarden.errors import UsageError
from trainwarden.supervise.needs import RECORDER_NEEDS, require_recorder

ROOTS = ("/env/lib/python3.11", "/env/lib/python3.11/site-packages")


def packages(*names: str, root: str = ROOTS[1]) -> set[str]:
    return {f"{root}/{name}/__init__.py" for name in names}


def test_torch_without_what_the_recorder_needs_is_one_error_that_names_it_all() -> None:
    with pytest.raises(UsageError, match="lacks blake3, safetensors: nothing could be recorded") as told:
        require_recorder(ROOTS, packages("torch", "msgspec", "numpy"), "/env/bin/python")
    assert told.value.hint == "/env/bin/python -m pip install blake3 safetensors"


def test_packages_below_different_roots_are_found() -> None:
    files = packages("torch", "numpy") | packages("blake3", "msgspec", "safetensors", root=ROOTS[0])
    require_recorder(ROOTS, files, "/env/bin/python")


def test_a_package_beside_the_import_roots_does_not_count() -> None:
    files = packages("torch") | packages(*RECORDER_NEEDS, root="/elsewhere")
    with pytest.raises(UsageError, match="lacks blake3, msgspec, numpy, safetensors"):
        require_recorder(ROOTS, files, "/env/bin/python")


def test_an_environment_without_torch_is_left_alone() -> None:
    require_recorder(ROOTS, packages("numpy"), "/env/bin/python")
