"""A tiny environment to seal: a virtual environment without pip on a cut-down standard library, and a script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sealed_site
from sealed_site import Site


@pytest.fixture(scope="session")
def stdlib_cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this Python's installation with the few modules that the tests import."""
    base = tmp_path_factory.mktemp("python")
    sealed_site.cut_python(base)
    return base


@pytest.fixture
def make_site(tmp_path: Path, stdlib_cut: Path) -> Callable[[], Site]:
    def make() -> Site:
        site = sealed_site.make_site(tmp_path, stdlib_cut)
        site.seal_again()
        return site

    return make


@pytest.fixture
def site(make_site: Callable[[], Site]) -> Site:
    return make_site()
