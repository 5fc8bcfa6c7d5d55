"""What a launch command starts: which Python, which script or module, how many ranks, which files it names.

Rules
-----
* Understood: `python [options] script | -m module | -c code`, `torchrun` (also as `python -m
  torch.distributed.run`), `accelerate launch`, and any console script whose shebang is a Python.
* The command is looked up as a shell would, in `cwd` and on the `PATH` of `env`; pyenv's shims are followed.
* Option tables hold the launchers' switches without a value; every other option takes the next word.
* Paths are kept as given (made absolute), symbolic links are not resolved: Python finds its virtual environment
  by the link's own place.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence

import msgspec

from trainwarden.errors import UsageError

_TORCHRUN_SWITCHES = {"-h", "--help", "--standalone", "-m", "--module", "--no-python", "--run-path", "--use-env"}
_ACCELERATE_SWITCHES = _TORCHRUN_SWITCHES | {
    *("--cpu", "--multi-gpu", "--tpu", "--ipex", "--debug", "-q", "--quiet", "--use-xpu", "--use-deepspeed"),
    *("--use-fsdp", "--use-megatron-lm", "--use-parallelism-config", "--same-network", "--tpu-use-cluster"),
    *("--no-tpu-use-cluster", "--tpu-use-sudo", "--enable-cpu-affinity", "--use-mps-device"),
}
_PYTHON_WITH_VALUE = {"--check-hash-based-pycs"}
_TORCHRUN_MODULES = {"torch.distributed.run", "torch.distributed.launch"}
_ACCELERATE_MODULES = {"accelerate.commands.launch"}
_PYTHON_NAME = re.compile(r"(python|pypy)\d*(\.\d+)?t?")
_OUTPUT_NAME = re.compile(
    r"(^|[-_.])(out|outputs?|save|log|logs|logging|results?|tensorboard|(work|run|root|exp|ckpts?|checkpoints?)"
    r"[-_.]?dir)([-_.]|$|dir|file|path|folder)"
)
_SEED = re.compile(r"(?:^|[-_.])seed$")
_HINT = "put `trainwarden run --` in front of the Python, torchrun or accelerate command itself"


class LaunchCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A launch command taken apart."""

    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str]
    executable: str  # absolute path of argv[0]
    interpreter: str  # absolute path of the Python that runs it
    launcher: str  # "python" | "torchrun" | "accelerate" | "script"
    script: str = ""  # absolute path of the training script, "" for a module, `-c` or a console script
    module: str = ""  # dotted name, after `-m`
    world: int = 0  # ranks stated by the command, 0 = not stated
    paths: tuple[str, ...] = ()  # absolute paths of words that name something existing to read
    outputs: tuple[str, ...] = ()  # the same, for options whose name says that they are written to
    seeds: dict[str, int] = {}


class _Target(msgspec.Struct, frozen=True):
    """What Python is asked to run, and the words after it."""

    script: str = ""
    module: str = ""
    code: bool = False
    rest: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()  # the launcher's own, with values


def parse_command(argv: Sequence[str], cwd: str, env: Mapping[str, str]) -> LaunchCommand:
    """Take a launch command apart.

    Raises:
        UsageError: it is empty, does not exist, is not Python, or has text that is not UTF-8.
    """
    argv = list(argv)
    if not argv:
        raise UsageError("no command was given", hint="for example: trainwarden run -- python train.py")
    for text in (*argv, cwd):
        if not _is_text(text):
            raise UsageError(f"{text!r} is not valid UTF-8", hint="rename the file or use a link to it")
    cwd = os.path.abspath(cwd)
    executable = _find_executable(argv[0], cwd, env)
    shebang = _shebang(executable, env)
    if is_python(argv[0]) or _is_elf_python(executable):
        interpreter = _ask_executable(executable, cwd, env)
        launcher, target = _python_target(argv[1:])
    elif shebang:
        interpreter = _ask_executable(shebang, cwd, env)
        launcher, target = _script_target(executable, argv)
    else:
        raise UsageError(f"{argv[0]!r} is not a Python command", hint=_HINT)
    script = os.path.join(cwd, target.script) if target.script else ""
    if script and not os.path.exists(script):
        raise UsageError(f"no such script: {target.script}", hint=f"the command is run in {cwd}")
    paths, outputs = named_paths(target.rest, cwd)
    return LaunchCommand(
        argv=tuple(argv),
        cwd=cwd,
        env=dict(env),
        executable=executable,
        interpreter=interpreter,
        launcher=launcher,
        script=os.path.normpath(script) if script else "",
        module=target.module,
        world=_world(launcher, dict(target.options)),
        paths=paths,
        outputs=outputs,
        seeds=_seeds(target.rest),
    )


def is_python(name: str) -> bool:
    """Whether a command's first word is a Python interpreter, by its name."""
    return _PYTHON_NAME.fullmatch(os.path.basename(name)) is not None


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ------------------------------------------------------------------------- which Python


def _find_executable(name: str, cwd: str, env: Mapping[str, str]) -> str:
    if "/" in name:
        found: str | None = os.path.join(cwd, name)
    else:
        folders = env.get("PATH", os.defpath).split(":")
        found = shutil.which(name, path=":".join(os.path.join(cwd, f) if f else cwd for f in folders))
    if found is None or not os.path.isfile(found):
        raise UsageError(f"no such command: {name}", hint="check its spelling and PATH")
    if not os.access(found, os.X_OK):
        raise UsageError(f"{name} is not executable", hint=f"python {name} …, or chmod +x {name}")
    return _behind_shim(os.path.normpath(found), cwd, env)


def _behind_shim(path: str, cwd: str, env: Mapping[str, str]) -> str:
    """pyenv puts a shell script in `shims/` for every command; `pyenv which` says what it would run."""
    if os.path.basename(os.path.dirname(path)) != "shims" or not (pyenv := shutil.which("pyenv", path=env.get("PATH"))):
        return path
    answer = _run([pyenv, "which", os.path.basename(path)], cwd, env)
    if answer.returncode != 0:
        raise UsageError(f"pyenv finds no {os.path.basename(path)}: {answer.stderr.strip()[:200]}")
    return answer.stdout.strip()


def _shebang(path: str, env: Mapping[str, str]) -> str:
    """The Python that a script's first lines name, or ""."""
    try:
        with open(path, "rb") as f:
            head = f.read(1024)
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}") from e
    if not head.startswith(b"#!"):
        return ""
    lines = os.fsdecode(head).splitlines()
    words = lines[0][2:].split()
    if words and os.path.basename(words[0]) == "sh" and len(lines) > 1 and lines[1].startswith("'''exec'"):
        words = shlex.split(lines[1][len("'''exec'") :])  # pip's form for paths that are too long
    if words and os.path.basename(words[0]) == "env":
        words = [w for w in words[1:] if not w.startswith("-")]
        words[:1] = [shutil.which(words[0], path=env.get("PATH")) or words[0]] if words else []
    if not words or not _PYTHON_NAME.fullmatch(os.path.basename(words[0])):
        return ""
    return words[0]


def _is_elf_python(path: str) -> bool:
    """A renamed or oddly named link to a Python binary."""
    return bool(_PYTHON_NAME.fullmatch(os.path.basename(os.path.realpath(path))))


def _ask_executable(path: str, cwd: str, env: Mapping[str, str]) -> str:
    """Wrappers start another Python than their name says: ask. Startup hooks (`.pth`) are not run."""
    answer = _run([path, "-I", "-S", "-c", "import sys; print(sys.executable)"], cwd, env)
    found = answer.stdout.strip()
    if answer.returncode != 0 or not os.path.isabs(found):
        raise UsageError(f"{path} does not start as a Python: {answer.stderr.strip()[:300]}", hint=_HINT)
    return found


def _run(argv: list[str], cwd: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv, cwd=cwd, env=dict(env), capture_output=True, text=True, errors="replace", timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise UsageError(f"{argv[0]} cannot be started: {e}", hint=_HINT) from e


# ------------------------------------------------------------------------- what it runs


def _python_target(words: Sequence[str]) -> tuple[str, _Target]:
    target = _after_python_options(words)
    if target.module in _TORCHRUN_MODULES:
        return "torchrun", _after_launcher_options(target.rest, _TORCHRUN_SWITCHES)
    if target.module in _ACCELERATE_MODULES:
        return "accelerate", _after_launcher_options(target.rest, _ACCELERATE_SWITCHES)
    return "python", target


def _script_target(executable: str, argv: Sequence[str]) -> tuple[str, _Target]:
    name = os.path.basename(executable)
    if name == "torchrun":
        return "torchrun", _after_launcher_options(argv[1:], _TORCHRUN_SWITCHES)
    if (name == "accelerate" and argv[1:2] == ["launch"]) or name == "accelerate-launch":
        rest = argv[2:] if name == "accelerate" else argv[1:]
        return "accelerate", _after_launcher_options(rest, _ACCELERATE_SWITCHES)
    if executable.endswith(".py"):
        return "python", _Target(script=executable, rest=tuple(argv[1:]))
    return "script", _Target(rest=tuple(argv[1:]))


def _after_python_options(words: Sequence[str]) -> _Target:
    at = 0
    while at < len(words):
        word = words[at]
        if word == "-":
            break
        if not word.startswith("-"):
            return _Target(script=word, rest=tuple(words[at + 1 :]))
        if word.startswith("--"):
            at += 2 if word in _PYTHON_WITH_VALUE else 1
            continue
        letter, value = _short_option(word)
        if letter and not value:
            at += 1
            value = words[at] if at < len(words) else ""
        if letter == "c":
            return _Target(code=True, rest=tuple(words[at + 1 :]))
        if letter == "m":
            return _Target(module=value, rest=tuple(words[at + 1 :]))
        at += 1
    raise UsageError("the Python command names no script", hint="for example: trainwarden run -- python train.py")


def _short_option(word: str) -> tuple[str, str]:
    """In `-um pkg` or `-Wignore`: the first letter that takes a value, and the value if it is attached."""
    for i, letter in enumerate(word[1:], 1):
        if letter in "cmWX":
            return letter, word[i + 1 :]
    return "", ""


def _after_launcher_options(words: Sequence[str], switches: set[str]) -> _Target:
    options: list[tuple[str, str]] = []
    module = False
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "--":
        name, has_value, value = words[at].partition("=")
        name = name.replace("_", "-")
        if name in ("-m", "--module"):
            module = True
        if not has_value and name not in switches:
            at += 1
            value = words[at] if at < len(words) else ""
        options.append((name, value))
        at += 1
    rest = words[at + 1 :] if words[at : at + 1] == ["--"] else words[at:]
    if not rest:
        raise UsageError("the launcher names no training script", hint="torchrun --nproc-per-node 2 train.py …")
    if module:
        return _Target(module=rest[0], rest=tuple(rest[1:]), options=tuple(options))
    return _Target(script=rest[0], rest=tuple(rest[1:]), options=tuple(options))


def _world(launcher: str, options: Mapping[str, str]) -> int:
    """Ranks in all, as stated; 0 where the machine decides (`--nproc-per-node gpu`, elastic `--nnodes 1:4`)."""
    if launcher == "torchrun":
        per_node, nodes = options.get("--nproc-per-node", "1"), options.get("--nnodes", "1")
        low, _, high = nodes.partition(":")
        if per_node.isdecimal() and low.isdecimal() and high in ("", low):
            return int(per_node) * int(low)
    if launcher == "accelerate" and options.get("--num-processes", "").isdecimal():
        return int(options["--num-processes"])
    return 0


# ------------------------------------------------------------------------- what its words say


def named_paths(words: Sequence[str], cwd: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words (also behind `=`) that are existing paths: those to read, and those whose option says output."""
    inputs: list[str] = []
    outputs: list[str] = []
    option = ""
    for word in words:
        name, value = _option_and_value(word, cwd)
        path = os.path.normpath(os.path.join(cwd, os.path.expanduser(value)))
        if value and os.path.lexists(path):
            is_output = _OUTPUT_NAME.search((name or option).lstrip("-").lower())
            (outputs if is_output else inputs).append(path)
        option = name if not value else ""
    return tuple(dict.fromkeys(inputs)), tuple(dict.fromkeys(outputs))


def _option_and_value(word: str, cwd: str) -> tuple[str, str]:
    """`--x` has no value yet, `--x=v` and `x=v` have one, a bare word (also one with `=` that is a file) is one."""
    name, equals, value = word.partition("=")
    if not equals and word.startswith("-"):
        return word, ""
    if not equals or (not word.startswith("-") and os.path.lexists(os.path.join(cwd, word))):
        return "", word
    return name, value


def _seeds(words: Sequence[str]) -> dict[str, int]:
    seeds: dict[str, int] = {}
    for i, word in enumerate(words):
        name, has_value, value = word.partition("=")
        key = name.lstrip("-").lower()
        if not has_value and word.startswith("-"):
            value = words[i + 1] if i + 1 < len(words) else ""
        if _SEED.search(key) and re.fullmatch(r"-?\d{1,19}", value):
            seeds[name.lstrip("-")] = int(value)
    return seeds
