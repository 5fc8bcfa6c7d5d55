"""What git says of a work tree; it is asked by commands that change nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

from trainwarden.errors import UsageError
from trainwarden.seal.cache import Item, item_of
from trainwarden.seal.walking import Boundaries, under, walk


def git(folder: str, *words: str) -> bytes | None:
    """The output of a git command that changes nothing; None when it fails or git is not installed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.quotepath=false", "-C", folder, *words]
    try:
        run = subprocess.run(command, capture_output=True, env=environment, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout if run.returncode == 0 else None


def git_root(folder: str) -> str:
    """The work tree that `folder` is in, or "". A folder that the repository ignores is not part of it."""
    answer = git(folder, "rev-parse", "--show-toplevel")
    if not answer:
        return ""
    root = os.fsdecode(answer.rstrip(b"\n"))
    if os.path.realpath(folder) != os.path.realpath(root) and git(folder, "check-ignore", "-q", ".") is not None:
        return ""
    return root


def git_files(root: str, boundaries: Boundaries) -> Iterator[Item]:
    """The files of a work tree that are tracked, or untracked and not ignored; submodules as well.

    Raises:
        UsageError: git cannot list them.
    """
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed is None:
        raise UsageError(f"git cannot list the files of {root}", hint=f"try `git -C {root} status`")
    for name in dict.fromkeys(os.fsdecode(listed).split("\0")):
        path = os.path.join(root, name.rstrip("/"))
        if not name or under(path, boundaries.skip) or ".trainwarden" in name.split("/"):
            continue
        if os.path.isdir(path) and not os.path.islink(path):  # a submodule, or a repository inside
            yield from git_files(path, boundaries) if git_root(path) == path else walk(path, boundaries)
        elif item := item_of(path):
            yield item
