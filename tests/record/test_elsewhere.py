"""In a replay everything that Python writes outside of the workspace goes into it, and is read back from there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainwarden.record.bootstrap import ELSEWHERE_ENV

SOURCE = Path(__file__).parents[2] / "src"
FIRST = f"import os; from trainwarden.record import elsewhere; elsewhere.install(os.environ[{ELSEWHERE_ENV!r}])\n"


class Outside:
    """A folder outside of a workspace; `run` runs lines in a process whose writes are led into the workspace."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.space = folder / "outside", folder / "space"
        (self.folder / "sub").mkdir(parents=True)
        self.space.mkdir()
        (self.folder / "told.jsonl").write_text("one\n")
        (self.folder / "sub" / "old").write_text("old\n")
        self.before = self.all()

    def run(self, lines: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(SOURCE), "HOME": str(self.folder), ELSEWHERE_ENV: str(self.space)}
        argv = [sys.executable, "-c", FIRST + lines]
        done = subprocess.run(argv, env=env, cwd=self.space, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert self.all() == self.before
        return done.stdout

    def all(self) -> dict[str, bytes | None]:
        found = sorted(self.folder.rglob("*"))
        return {str(p.relative_to(self.folder)): p.read_bytes() if p.is_file() else None for p in found}


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    return Outside(tmp_path)


def test_appended_and_written_files_stay_as_they_were_and_are_read_back_as_the_job_left_them(outside: Outside) -> None:
    said = outside.run(
        "from pathlib import Path\n"
        "with open(os.path.expanduser('~/told.jsonl'), 'a') as f: f.write('two\\n')\n"
        "print(open(os.path.expanduser('~/told.jsonl')).read().split())\n"
        "Path.home().joinpath('new').write_text('new'); print(Path.home().joinpath('new').read_text())\n"
        "os.makedirs(Path.home() / 'a' / 'b'); (Path.home() / 'a' / 'b' / 'c').write_text('c')\n"
        "print(sorted(os.listdir(Path.home())), sorted(p.name for p in Path.home().iterdir()))\n"
        "print(sorted(e.name for e in os.scandir(Path.home() / 'sub')))\n"
        "fd = os.open(Path.home() / 'told.jsonl', os.O_WRONLY | os.O_APPEND); os.write(fd, b'three'); os.close(fd)\n"
        "print((Path.home() / 'told.jsonl').stat().st_size)\n"
    )
    names = ["a", "new", "sub", "told.jsonl"]
    assert said.splitlines() == ["['one', 'two']", "new", f"{names} {names}", "['old']", "13"]


def test_removed_moved_and_linked_files_stay_where_they_were_and_are_gone_for_the_job(outside: Outside) -> None:
    said = outside.run(
        "import shutil; from pathlib import Path\n"
        "home = Path.home()\n"
        "os.replace(home / 'told.jsonl', home / 'moved')\n"
        "print((home / 'told.jsonl').exists(), (home / 'moved').read_text())\n"
        "os.link(home / 'sub' / 'old', home / 'name'); open(home / 'name', 'a').write('x')\n"
        "os.symlink(home / 'sub', 'inside')\n"
        "open('inside/old', 'w').write('through a link'); print(open('inside/old').read())\n"
        "shutil.rmtree(home / 'sub'); print((home / 'sub').exists(), sorted(os.listdir(home)))\n"
        "try: open(home / 'sub' / 'old')\n"
        "except FileNotFoundError: print('gone')\n"
    )
    assert said.splitlines() == ["False one", "", "through a link", "False ['moved', 'name']", "gone"]


def test_a_data_base_is_a_copy_and_what_stands_in_for_a_function_is_no_method(outside: Outside) -> None:
    said = outside.run(
        "import pickle, sqlite3; from pathlib import Path\n"
        "elsewhere.database(sqlite3)\n"
        "with sqlite3.connect(Path.home() / 'm.db') as db: db.execute('create table t (a)')\n"
        "class Held: opens, stat = open, os.stat\n"
        "print(Held().opens('f', 'w').name, pickle.loads(pickle.dumps(open)) is open)\n"
        "print(os.stat in os.supports_dir_fd, repr(open), os.path.exists('/dev/null'))\n"
    )
    assert said.splitlines() == ["f True", "True <built-in function open> True"]


def test_what_lies_in_the_workspace_or_in_its_other_folders_is_written_where_it_is(
    outside: Outside, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    env = {**os.environ, "PYTHONPATH": str(SOURCE), ELSEWHERE_ENV: f"{outside.space}{os.pathsep}{own}"}
    lines = (
        f"open('here', 'w').write('1'); open({str(own / 'there')!r}, 'w').write('2'); open('/dev/null', 'w').write('3')"
    )
    subprocess.run([sys.executable, "-c", FIRST + lines], env=env, cwd=outside.space, check=True)
    assert (outside.space / "here").read_text() == "1"
    assert (own / "there").read_text() == "2"
    assert not (outside.space / "abs").exists()
