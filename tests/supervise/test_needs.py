"""What the recorder needs of a training environment, looked for in the sealed list."""

from __future__ import annotations

import json
import subprocess
import sys

from trainwarden.supervise.needs import ORDERED_NEEDS, RECORDER_NEEDS, lacking

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


def test_an_ordered_reduction_needs_what_signs() -> None:
    assert lacking(ROOTS, packages("torch", *RECORDER_NEEDS), ORDERED_NEEDS) == ("cryptography",)


def test_the_recorder_imports_what_it_needs_and_nothing_else_of_ours() -> None:
    code = (
        "import json, sys, torch; before = set(sys.modules); import trainwarden.record.recorder, "
        "trainwarden.record.hooks, trainwarden.record.files; "
        "print(json.dumps(sorted({n.partition('.')[0] for n in set(sys.modules) - before})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    taken = set(json.loads(done.stdout)) - set(sys.stdlib_module_names) - {"trainwarden", "torch"}
    assert taken <= set(RECORDER_NEEDS)
