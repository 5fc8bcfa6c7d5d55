"""Which files belong to environment, code and data.

Rules
-----
* *Environment*: everything below the interpreter's standard library and site-packages; every file of the virtual
  environment's `bin/` and its `pyvenv.cfg`; the interpreter binary, libpython and `LD_PRELOAD` libraries; and,
  of the folders that `PYTHONPATH`, `.pth` files and editable installs name, what can be imported.
  A `site-packages` inside a standard library belongs only if this interpreter imports from it.
* *Code*: `[seal] code`, else the git repository of the script (tracked files and untracked ones that are not
  ignored), else the script's folder, bounded; never the file that our own output goes to.
  Importable files beside sealed sources belong to it even when git ignores them (`__pycache__`, a built `.so`, a
  package that would shadow another).
* *Data*: `[seal] data` and the existing paths that the command names, outside code and environment. A word that
  names the code folder or one above it is too broad to be data; a word of an option that names an output
  (`--out`, `--log-dir`, `--save-path`, …) is none.
* A folder is sealed once: code before environment before data. Version control folders, other virtual
  environments and the store itself are left out.
* A symbolic link is sealed as a link; what it points to outside the sealed folders is sealed too. Of the code that
  is what an import could follow: the file behind a module's name, and what is importable in a folder that is linked
  to beside sealed sources (no more of it: it may be anything, a data set included).
* Places that are empty now and would be loaded from are roots without files (`latent.py`).

Not covered: system libraries below `/lib` and `/usr/lib` (but for the standard library), the kernel, drivers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from trainwarden.config import Config
from trainwarden.errors import UsageError
from trainwarden.seal.cache import Item, item_of, unreadable
from trainwarden.seal.command import LaunchCommand
from trainwarden.seal.git import git_files, git_root
from trainwarden.seal.interpreter import Interpreter, named_by_site
from trainwarden.seal.latent import latent_places, library_folders, preloaded, pycache_prefix
from trainwarden.seal.walking import Boundaries, importable, loadable, under, walk, walk_libraries

MAX_CODE_FILES = 20_000
MAX_CODE_BYTES = 2 * 1024**3
SINGLES = "/"  # the root of entries that are sealed by themselves, not as part of a folder
_OUTPUT_LIKE = (
    *(".log", ".out", ".err", ".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".npy", ".npz", ".tmp"),
    *(".parquet", ".arrow", ".gguf", ".onnx", ".sqlite", ".db"),
)

Trees = dict[str, dict[str, Item]]
"""Root → absolute path → item."""


# ------------------------------------------------------------------------- code


def code_roots(command: LaunchCommand, config: Config) -> tuple[str, ...]:
    """The folders whose contents are the run's code.

    Raises:
        UsageError: `[seal] code` names something that is no folder.
    """
    if config.seal.code:
        roots = [os.path.normpath(os.path.join(command.cwd, os.path.expanduser(p))) for p in config.seal.code]
        for root in roots:
            if not os.path.isdir(root):
                raise UsageError(f"[seal] code names {root}, which is not a folder", hint="see trainwarden.toml")
        return tuple(r for r in roots if not under(r, [o for o in roots if o != r]))
    start = os.path.dirname(command.script) if command.script else command.cwd
    return (git_root(start) or start,)


def scan_code(roots: Iterable[str], boundaries: Boundaries, outputs: Iterable[str] = (), script: str = "") -> Trees:
    """The code below each root; `script` belongs to it whatever git ignores.

    Raises:
        UsageError: there is too much of it, or it cannot be read.
    """
    outputs = tuple(outputs)
    trees: Trees = {}
    for root in roots:
        if git_root(root):
            found = {i.path: i for i in git_files(root, boundaries)}
        else:
            items = walk(root, boundaries.with_(outputs))
            found = _bounded(root, (i for i in items if not _like_output(i.path) and i.path not in outputs))
        found.update(_bounded(root, importable_beside(root, found, boundaries)))
        if under(script, [root]) and (item := item_of(script)):
            found[script] = item
        trees[root] = without_streams(found)
    _follow_imports(trees, boundaries)
    return trees


def _follow_imports(trees: Trees, boundaries: Boundaries) -> None:
    """Seal what an import finds behind links of the code: files by themselves, folders as roots of their own.

    What is installed stays the environment's.
    """
    pending = [link for root in list(trees) for link in _import_links(root, trees[root])]
    singles: dict[str, Item] = {}
    while pending:
        target = os.path.realpath(pending.pop())
        known = {path for tree in trees.values() for path in tree} | singles.keys()
        if target in known or under(target, boundaries.skip) or any(under(root, [target]) for root in trees):
            continue
        if os.path.isdir(target):
            found = _bounded(target, (i for i in importable_beside(target, (), boundaries) if i.path not in known))
            if found:
                trees[target] = found
                pending += _import_links(target, found)
        elif item := item_of(target):
            singles[target] = item
    if singles:
        trees[SINGLES] = singles


def _import_links(root: str, tree: Mapping[str, Item]) -> Iterator[str]:
    """The links of a tree that an import follows: modules, and folders beside sources."""
    folders = {root, *(os.path.dirname(path) for path in tree if path.endswith(".py"))}
    for folder in sorted(folders):
        for entry in _scandir(folder):
            if entry.is_symlink() and (importable(entry.name) or (entry.name.isidentifier() and entry.is_dir())):
                yield entry.path


def without_streams(items: Mapping[str, Item]) -> dict[str, Item]:
    """The items but for files that our own output goes to (`trainwarden run … > log.txt`): results, by any name."""
    streams = set()
    for descriptor in (1, 2):
        with suppress(OSError):
            status = os.fstat(descriptor)
            streams.add((status.st_dev, status.st_ino))
    return {p: i for p, i in items.items() if (i.dev, i.ino) not in streams or importable(p)}


def _like_output(path: str) -> bool:
    return path.endswith(_OUTPUT_LIKE) or "tfevents" in os.path.basename(path)


def _bounded(root: str, items: Iterable[Item], kind: str = "code") -> dict[str, Item]:
    found: dict[str, Item] = {}
    size = 0
    for item in items:
        found[item.path] = item
        size += item.size
        if len(found) > MAX_CODE_FILES or size > MAX_CODE_BYTES:
            raise UsageError(
                f"the {kind} folder {root} holds more than {MAX_CODE_FILES} files or {MAX_CODE_BYTES >> 30} GiB",
                hint='name the folders that are code: [seal] code = ["src"] in trainwarden.toml'
                if kind == "code"
                else "PYTHONPATH, a .pth file or an editable install names it: name only what is imported from there",
            )
    return found


def importable_beside(root: str, sealed: Iterable[str], boundaries: Boundaries) -> Iterator[Item]:
    """Importable files in the folders of sealed sources, and in packages directly inside those folders.

    The same rule lists what belongs to the code when it is sealed and what is new when it is checked.
    """
    folders = {os.path.dirname(p) for p in sealed if p.endswith(".py")} | {root}
    done: set[str] = set()
    pending = sorted(f for f in folders if not f.endswith("/__pycache__"))
    while pending:
        folder = pending.pop()
        if folder in done:
            continue
        done.add(folder)
        for entry in _scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                if entry.path not in boundaries.skip and _is_package(entry.path):
                    pending.append(entry.path)
            elif importable(entry.name) and (item := item_of(entry.path)):
                yield item


def _is_package(folder: str) -> bool:
    if os.path.basename(folder) == "__pycache__":
        return True
    return any(e.name.startswith("__init__.") for e in _scandir(folder))


def _scandir(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except FileNotFoundError:
        return []
    except OSError as e:
        raise unreadable(folder, e) from e


# ------------------------------------------------------------------------- environment


def environment_roots(interpreter: Interpreter) -> tuple[str, ...]:
    """Folders of the installed environment: sealed whole."""
    roots = [*interpreter.stdlib, *interpreter.sites]
    if interpreter.venv:
        roots.append(os.path.join(interpreter.venv, "bin"))
    if os.path.isdir(os.path.join(interpreter.base, "conda-meta")):
        roots.append(os.path.join(interpreter.base, "lib"))
    return tuple(dict.fromkeys(r for r in roots if os.path.isdir(r)))


def scan_environment(interpreter: Interpreter, command: LaunchCommand, code: Trees, boundaries: Boundaries) -> Trees:
    """Everything that the interpreter can load, but for the code.

    Raises:
        UsageError: a folder cannot be listed, or a folder on the import path is far too large.
    """
    coded = {path for tree in code.values() for path in tree}
    own = tuple(root for root in code if root != SINGLES)
    empty = latent_places(interpreter, command)  # asked before and after, so that nothing appears or goes between
    installed = environment_roots(interpreter)
    sources = [p for site in interpreter.sites for p in named_by_site(site)]
    sources += [os.path.join(command.cwd, p) for p in command.env.get("PYTHONPATH", "").split(":") if p]
    sources = [_container(os.path.normpath(p)) for p in sources if p]
    singles = dict.fromkeys((*filter(os.path.isfile, sources), *_single_files(interpreter, command)))
    folders = [p for p in dict.fromkeys(sources) if os.path.isdir(p) and not under(p, (*installed, *own))]
    bounds = boundaries.with_((*installed, *folders, *own))
    trees: Trees = {root: {i.path: i for i in walk(root, bounds)} for root in installed}
    for root in folders:
        trees[root] = _bounded(root, (i for i in walk(root, bounds) if loadable(i)), kind="import")
    prefix = pycache_prefix(command.argv, command.env, command.cwd)
    for root in (f"{prefix}{source}" for source in (*installed, *folders, *own) if prefix):
        trees[root] = {i.path: i for i in walk(root, bounds) if loadable(i)}
    for root in library_folders(command.env, command.cwd):
        if os.path.isdir(root) and not under(root, (*installed, *folders)):
            trees[root] = {i.path: i for i in walk_libraries(root, bounds) if i.path not in coded}
    empty += latent_places(interpreter, command)
    trees |= {place: {} for place in empty if place not in trees}
    full = [root for root, tree in trees.items() if tree]
    trees[SINGLES] = {i.path: i for p in singles if not under(p, full) and p not in coded and (i := item_of(p))}
    _follow_links(trees, own, coded, bounds)
    return trees


def _single_files(interpreter: Interpreter, command: LaunchCommand) -> Iterator[str]:
    for start in (interpreter.executable, command.executable):
        yield from _link_chain(start)
    for path in interpreter.libpython:
        yield from _link_chain(path)
    if interpreter.venv:
        yield os.path.join(interpreter.venv, "pyvenv.cfg")
        yield os.path.join(interpreter.venv, "lib64")
    for path in preloaded(command.env):
        yield from _link_chain(path)


def _container(path: str) -> str:
    """A path inside a zip archive names the archive; any other path is itself."""
    place = path
    while not os.path.lexists(place) and place != "/":
        place = os.path.dirname(place)
    return place if os.path.isfile(place) else path


def _link_chain(path: str) -> Iterator[str]:
    """A path, and every link and file on the way to what it finally is."""
    for _ in range(40):
        yield path
        if not os.path.islink(path):
            break
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    yield os.path.realpath(path)


def _follow_links(trees: Trees, elsewhere: Iterable[str], coded: set[str], boundaries: Boundaries) -> None:
    """Seal what links point to outside the trees: files by themselves, folders as roots of their own.

    `elsewhere` are folders, `coded` files that are sealed as another kind.
    """
    pending = [i for tree in trees.values() for i in tree.values() if i.link is not None]
    elsewhere = tuple(elsewhere)
    while pending:
        link = pending.pop()
        target = os.path.realpath(link.path)
        roots = tuple(r for r in trees if r != SINGLES)
        if under(target, roots) or target in coded or target in trees.get(SINGLES, {}):
            continue
        if under(target, elsewhere) and os.path.isdir(target):
            continue
        if os.path.isdir(target) and not any(under(r, [target]) for r in roots):
            trees[target] = _bounded(target, walk(target, boundaries))
            pending += [i for i in trees[target].values() if i.link is not None]
        elif item := item_of(target):
            trees.setdefault(SINGLES, {})[target] = item


# ------------------------------------------------------------------------- data


def scan_data(
    command: LaunchCommand, config: Config, code: Trees, environment: Iterable[str], boundaries: Boundaries
) -> Trees:
    """The files that the command or the configuration names, folders walked.

    Raises:
        UsageError: the configuration names data that does not exist, or a folder cannot be listed.
    """
    words = (*config.seal.data, config.data.samples) if config.data.samples else config.seal.data
    named = [os.path.normpath(os.path.join(command.cwd, os.path.expanduser(p))) for p in words]
    for path in named:
        if not os.path.exists(path):
            reason = f"[seal] data or [data] samples names {path}, which does not exist"
            raise UsageError(reason, hint="see trainwarden.toml")
    roots = tuple(r for r in environment if r != SINGLES)
    known = {path for tree in code.values() for path in tree}
    own = tuple(root for root in code if root != SINGLES)
    paths = named + [p for p in command.paths if not any(under(root, [p]) for root in own)]
    bounds = boundaries.with_(command.outputs)
    trees: Trees = {}
    for path in dict.fromkeys(paths):
        if under(path, (*roots, *(r for r in trees if r != SINGLES))) or path == command.executable:
            continue
        if os.path.isdir(path) and not os.path.islink(path):
            found = without_streams({i.path: i for i in walk(path, bounds) if i.path not in known})
            if found:
                trees[path] = found
        elif path not in known and (item := item_of(path)):
            trees.setdefault(SINGLES, {})[path] = item
    _follow_links(trees, (*roots, *own), known, bounds)
    return trees
