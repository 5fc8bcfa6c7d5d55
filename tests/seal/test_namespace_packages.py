"""A new folder beside the script counts only where some sealed source would import it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sealed_site import Site

from trainwarden.seal.imports import imported_names


def put(site: Site, name: str) -> str:
    path = site.code / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("X = 1\n")
    return str(Path("code") / name)


@pytest.mark.parametrize("name", ["runs/copy/train.py", "sums/add.py", "json/tool.py", "not-a-name/x.py"])
def test_folder_that_nothing_sealed_would_import_is_silent(site: Site, name: str) -> None:
    put(site, name)
    assert site.changes() == {}


def test_folder_that_a_failing_import_waits_for_is_found(site: Site) -> None:
    (site.packages / "tries.py").write_text(
        "import importlib\ntry:\n    importlib.import_module('apex')\nexcept: pass\n"
    )
    site.seal_again()
    assert site.changes() == {}
    placed = put(site, "apex/deep/fused.py")
    assert list(site.changes()) == [placed]


def test_portion_that_comes_before_an_installed_namespace_package_is_found(site: Site) -> None:
    (site.packages / "vendor").mkdir()
    (site.packages / "vendor" / "tool.py").write_text("X = 0\n")
    (site.code / "helper.py").write_text("from vendor import tool\nONE = tool.X\n")
    site.seal_again()
    placed = put(site, "vendor/tool.py")
    assert list(site.changes()) == [placed]


def test_names_are_read_from_every_form_of_import() -> None:
    source = b"import a, b.c as d\n  from e.f import g\ntry:\n    import h\nimport_module('i')\n"
    source += b"from . import j\n# import k\n"
    assert imported_names(source) == {"a", "b", "e", "h", "i"}


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
@example(b"import \xff\nfrom\timport\n")
def test_any_bytes_give_identifiers(source: bytes) -> None:
    assert all(name.isidentifier() for name in imported_names(source))
