"""Test files are modules without packages: one name each, and none that hides a package of the repository."""

from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_no_two_files_of_tests_have_one_name_and_none_hides_a_package() -> None:
    files = [p.stem for p in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name, count in Counter(files).items() if count > 1] == []
    packages = {p.name for p in ROOT.iterdir() if p.is_dir()}
    assert [p for p in (ROOT / "tests").rglob("*.py") if p.stem in packages] == []
