"""Ranks' processes as /proc shows them: foreign native code and variables are seen, honest processes are not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from supervised import Place, of_kind, until

from trainwarden.model import Deviation, FileEntry, Finding, Gap, ManifestRef, ProcessSeen, Seal
from trainwarden.store import Store
from trainwarden.supervise.mappings import (
    ProcessDesk,
    environment_deviations,
    parse_environ,
    parse_maps,
)

WAIT = "import sys; print('ready', flush=True); sys.stdin.readline()"
LOAD = "import ctypes, sys; ctypes.CDLL(sys.argv[1]); print('ready', flush=True); sys.stdin.readline()"
LATER = (
    "import ctypes, sys; print('ready', flush=True); sys.stdin.readline(); ctypes.CDLL(sys.argv[1]);"
    "print('loaded', flush=True); sys.stdin.readline()"
)


class Entries:
    """A ledger that keeps what it is given."""

    def __init__(self) -> None:
        self.entries: list[object] = []

    def submit(self, entry: object) -> bool:
        self.entries.append(entry)
        return True

    @property
    def deviations(self) -> list[Deviation]:
        return [d for e in of_kind(self.entries, ProcessSeen) for d in e.deviations]  # type: ignore[arg-type]


class Watched:
    """A desk with a seal over the running interpreter, and processes started for it."""

    def __init__(self, folder: Path, files: Mapping[str, FileEntry], env: dict[str, str]) -> None:
        nothing = {k: ManifestRef(kind=k, digest="0" * 64, files=1, bytes=0) for k in ("code", "environment", "data")}
        created = 1 << 62  # every system library is older
        self.seal = Seal(created_ns=created, argv=(), cwd="/", interpreter=sys.executable, env_vars=env, **nothing)
        self.ledger = Entries()
        self.store = Store.open(folder / "store", create=True)
        self.desk = ProcessDesk(self.store, self.ledger, self.seal, lambda: files, interval=0.02)  # type: ignore[arg-type]
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, code: str, *words: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", code, *words], env={**self.seal.env_vars, **(env or {})},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.processes.append(process)
        self.wait_for(process, "ready")
        return process

    @staticmethod
    def wait_for(process: subprocess.Popen[str], line: str) -> None:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == line

    @staticmethod
    def go_on(process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

    def joined(self, process: subprocess.Popen[str]) -> None:
        before = len(self.ledger.entries)
        self.desk.joined(0, 0, process.pid)
        until(lambda: len(self.ledger.entries) > before, "a look at the process")

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        self.desk.close()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    real = os.path.realpath(sys.executable)
    files = {real: FileEntry(path=real, digest="0" * 64, size=1, mode=0o755)}
    for folder in {p for p in sys.path if p.endswith("lib-dynload")}:
        files |= {str(p): FileEntry(path=str(p), digest="0" * 64, size=1, mode=0o755) for p in Path(folder).iterdir()}
    bench = Watched(tmp_path, files, {"PATH": "/usr/bin:/bin"})
    yield bench
    bench.close()


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A native library that no seal lists: the C library's mathematics under another name."""
    maps = parse_maps(Path("/proc/self/maps").read_text())
    libm = next(m.path for m in maps.files if os.path.basename(m.path).startswith("libm"))
    return Path(shutil.copy(libm, tmp_path / "libhelper.so"))


def test_an_honest_process_is_as_sealed(watched: Watched) -> None:
    watched.joined(watched.start(WAIT))
    (seen,) = of_kind(watched.ledger.entries, ProcessSeen)  # type: ignore[arg-type]
    assert seen.deviations == ()
    assert seen.libraries == seen.sealed + seen.system > 0


def test_a_foreign_library_is_told_and_kept(watched: Watched, library: Path) -> None:
    watched.joined(watched.start(LOAD, str(library)))
    (found,) = watched.ledger.deviations
    assert (found.kind, found.name) == ("library", str(library))
    assert watched.store.get(found.found) == library.read_bytes()


def test_a_library_loaded_later_is_told_once(watched: Watched, library: Path) -> None:
    process = watched.start(LATER, str(library))
    watched.joined(process)
    assert watched.ledger.deviations == []
    watched.go_on(process)
    watched.wait_for(process, "loaded")
    until(lambda: len(watched.ledger.deviations) == 1, "the library is seen")
    other = watched.start(WAIT)
    watched.joined(other)  # a further look at everything goes by
    assert [d.name for d in watched.ledger.deviations] == [str(library)]


def test_a_library_that_is_deleted_after_loading_is_told(watched: Watched, library: Path) -> None:
    process = watched.start(LOAD, str(library))
    library.unlink()
    watched.joined(process)
    assert [(d.kind, d.name) for d in watched.ledger.deviations] == [("deleted", str(library))]


def test_a_preloaded_library_is_told_by_variable_and_by_mapping(watched: Watched, library: Path) -> None:
    watched.joined(watched.start(WAIT, env={"LD_PRELOAD": str(library)}))
    found = {(d.kind, d.name) for d in watched.ledger.deviations}
    assert found == {("environment", "LD_PRELOAD"), ("library", str(library))}


def test_a_library_that_was_sealed_is_honest(tmp_path: Path, library: Path, watched: Watched) -> None:
    files = {**watched.desk._read_files(), str(library): FileEntry(path=str(library), digest="0" * 64, size=1)}
    twin = Watched(tmp_path / "twin", files, {"PATH": "/usr/bin:/bin", "LD_PRELOAD": str(library)})
    try:
        twin.joined(twin.start(WAIT))
        assert twin.ledger.deviations == []
    finally:
        twin.close()


def test_an_interpreter_that_is_not_sealed_is_told(tmp_path: Path) -> None:
    bench = Watched(tmp_path, {"/nothing": FileEntry(path="/nothing", digest="0" * 64, size=1)}, {})
    try:
        bench.joined(bench.start(WAIT))
        assert "interpreter" in {d.kind for d in bench.ledger.deviations}
    finally:
        bench.close()


def test_a_process_that_is_gone_is_a_gap_and_no_finding(watched: Watched) -> None:
    process = watched.start(WAIT)
    process.kill()
    process.communicate()
    watched.joined(process)
    assert [type(e) for e in watched.ledger.entries] == [Gap]


def test_a_whole_run_names_the_library_and_its_benign_twin_is_silent(place: Place, job: Path, library: Path) -> None:
    script = "import ctypes, sys\nctypes.CDLL(sys.argv.pop(1))\nimport fake_rank\nfake_rank.main()\n"
    (job / "loads.py").write_text(script)
    words = ("start", "join:0/1", "steps:3", "until_acked", "bye")
    ended = place.run(job, str(place.python), "loads.py", str(library), *words)
    told = [f for f in of_kind(ended.entries, Finding) if f.detector == "mappings"]
    assert [str(library) in f.seen for f in told] == [True]
    honest = place.run(job, str(place.python), "fake_rank.py", *words)
    assert of_kind(honest.entries, Finding) == []
    assert len(of_kind(honest.entries, ProcessSeen)) == 1


def test_variables_that_load_code_are_compared_and_others_are_not() -> None:
    sealed = {"PYTHONPATH": "/a", "LD_LIBRARY_PATH": "/l", "OMP_NUM_THREADS": "1"}
    found = {"PYTHONPATH": "/evil:/a", "LD_AUDIT": "/x.so", "OMP_NUM_THREADS": "2", "HOME": "/h"}
    names = {d.name: (d.expected, d.found) for d in environment_deviations(sealed, found)}
    assert names == {"PYTHONPATH": ("/a", "/evil:/a"), "LD_LIBRARY_PATH": ("/l", ""), "LD_AUDIT": ("", "/x.so")}


def test_the_recorders_own_folder_on_the_path_is_no_deviation() -> None:
    import trainwarden

    inject = str(Path(trainwarden.__file__).parent / "record" / "inject")
    assert environment_deviations({"PYTHONPATH": "/a"}, {"PYTHONPATH": f"{inject}:/a"}) == []
    assert environment_deviations({}, {"PYTHONPATH": inject}) == []


def test_the_first_of_two_values_counts() -> None:
    assert parse_environ(b"LD_PRELOAD=/evil.so\0LD_PRELOAD=\0A=b=c\0rest") == {"LD_PRELOAD": "/evil.so", "A": "b=c"}


MAPS = """\
7f00-7f10 r-xp 00000000 08:01 123 /opt/with space/lib a.so (deleted)
7f10-7f20 rw-p 00000000 08:01 123 /opt/data.bin
7f20-7f40 rwxp 00000000 00:00 0
7f40-7f50 r-xp 00000000 00:00 0 [vdso]
"""


def test_maps_are_read_as_the_kernel_writes_them() -> None:
    maps = parse_maps(MAPS)
    assert [(m.path, m.inode, m.deleted) for m in maps.files] == [("/opt/with space/lib a.so", 123, "deleted")]
    assert maps.writable == 0x20


@hypothesis_settings(max_examples=80, deadline=None)
@given(st.text(st.sampled_from("0af-rwxp:/ \n()[]deltx"), max_size=200))
@example("x-y rwxp 0 0 0")
@example("1-2 r-xp 0 0 x /a")
def test_any_text_is_read_as_maps(text: str) -> None:
    for mapped in parse_maps(text).files:
        assert mapped.path.startswith("/")


@hypothesis_settings(max_examples=50, deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes_are_read_as_an_environment(data: bytes) -> None:
    assert all("\0" not in name for name in parse_environ(data))
