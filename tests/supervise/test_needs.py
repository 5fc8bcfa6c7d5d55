"""What the recorder needs of a training environment, looked for in the sealed list."""

from __future__ import annotations

from trainwarden.supervise.needs import RECORDER_NEEDS, lacking

ROOTS = ("/env/lib/python3.11", "/env/lib/python3.11/site-packages")


def packages(*names: str, root: str = ROOTS[1]) -> set[str]:
    return {f"{root}/{name}/__init__.py" for name in names}


def test_everything_that_is_missing_beside_torch_is_named() -> None:
    assert lacking(ROOTS, packages("torch", "msgspec", "numpy")) == ("blake3", "safetensors")


def test_packages_below_different_roots_are_found() -> None:
    files = packages("torch", "numpy") | packages("blake3", "msgspec", "safetensors", root=ROOTS[0])
    assert lacking(ROOTS, files) == ()


def test_a_package_beside_the_import_roots_does_not_count() -> None:
    assert lacking(ROOTS, packages("torch") | packages(*RECORDER_NEEDS, root="/elsewhere")) == RECORDER_NEEDS


def test_an_environment_without_torch_is_left_alone() -> None:
    assert lacking(ROOTS, packages("numpy")) == ()
