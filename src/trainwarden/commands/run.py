"""`trainwarden run -- CMD…`: seal the inputs of a launch command, then guard it while it trains.

stdout belongs to the command; everything of ours goes to stderr, but for the one object that `--json` adds at the
end. Seal progress is shown on a terminal only.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trainwarden.commands.common import Subparsers, add_verb, open_store, print_json, watcher_of
from trainwarden.errors import UsageError
from trainwarden.model import Action, Finding, Severity, Undelivered

if TYPE_CHECKING:
    from rich.console import Console

    from trainwarden.config import Config
    from trainwarden.log.client.shipper import Shipped
    from trainwarden.respond.beside import Beside
    from trainwarden.store import Store
    from trainwarden.supervise.events import Event, RunResult
    from trainwarden.supervise.responding import Told

_EXIT = (
    "exit codes:\n"
    "  the command's own exit code; 128+n when signal n ended it (as a shell tells it)\n"
    "  3  the call or its input is wrong (the command was not started)"
)
_NO_STEP = (
    "hint: only torch optimizers in Python processes below the command are seen; check that it trains, and that it "
    "keeps PYTHONPATH and the TRAINWARDEN_ variables for its workers"
)
_STYLE = {Severity.HIGH: "bold red", Severity.MEDIUM: "red", Severity.LOW: "yellow", Severity.INFO: "dim"}

_DONE = {
    Action.HOLD: "the job is held; to let it go on: trainwarden contain {run} --release",
    Action.STOP: "the command is ended",
    Action.RECOVER: "the command is ended, to be taken back to the last cleared checkpoint",
}


def add(subparsers: Subparsers[Any]) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "run",
        "Seal the inputs of a training command, then guard it while it trains.",
        run=run,
        usage="trainwarden run [options] -- CMD …",
        examples=(
            "trainwarden run -- torchrun --nproc-per-node 2 train.py --epochs 3",
            "trainwarden run --on-environment-change alert -- python train.py",
            "trainwarden run --clean-room -- python train.py",
        ),
        exit_codes=_EXIT,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: trainwarden.toml, if there is one")
    parser.add_argument(
        "--on-environment-change",
        choices=("refuse", "alert"),
        help="a sealed file changed before a process starts: refuse the start, or only tell (default: refuse)",
    )
    parser.add_argument(
        "--clean-room",
        action="store_true",
        help="run in the sealed environment rebuilt from the store, out of reach of changes to the shared one",
    )
    add_show_findings(parser)
    parser.add_argument(
        "--audit-budget",
        metavar="SHARE",
        help="replay single steps beside training, for this share of its CPU time (default: 1%%; 0: none)",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD …", help="the launch command")


def run(args: argparse.Namespace) -> int:
    """Guard the command and return its exit code, 128 + n for signal n."""
    from rich.console import Console

    from trainwarden.config import FILE_NAME, load_config
    from trainwarden.isolation import job_environ
    from trainwarden.keys import SigningKey
    from trainwarden.respond.alerts.secrets import without_secrets
    from trainwarden.respond.answer import response_to
    from trainwarden.seal.command import parse_command
    from trainwarden.supervise.supervisor import supervise

    argv = command_words(args.command)
    cwd = Path.cwd()
    config = with_policy(load_config(args.config, cwd), args.on_environment_change)
    config = with_budget(config, args.audit_budget)
    response, details = response_to(config), shows_details(config, args.show_findings)
    command = parse_command(argv, str(cwd), without_secrets(job_environ(), config))
    console = Console(file=_Stderr(), highlight=False, soft_wrap=True)
    store = open_store(args, create=True)
    config_file = str((args.config or cwd / FILE_NAME).absolute()) if config.log.server else ""
    try:
        with progress_bar(console) as bar:
            result = supervise(
                command,
                store,
                config,
                SigningKey.load_or_create(),
                on_event=Terminal(console, bar, details).tell,
                progress=bar,
                watcher=watcher_of(config),
                config_file=config_file,
                clean_room=args.clean_room,
                response=response,
                beside=_beside(store, config),
            )
        if result.asked is Action.RECOVER and not result.interrupted:
            return _recovered(args, console, store, config, config_file, result)
    finally:
        store.close()
    summary(console, result)
    if args.json:
        print_json(_as_json(result, details))
    return shell_code(result.exit_code)


def _beside(store: Store, config: Config) -> Beside | None:
    """What clears checkpoints while the run goes on, if that is asked for."""
    if not config.recover.clear_ahead:
        return None
    from trainwarden.respond.beside import Beside

    return Beside(store, ahead=True)


def _recovered(
    args: argparse.Namespace, console: Console, store: Store, config: Config, config_file: str, result: RunResult
) -> int:
    """Take the run back as policy asks, as often as it does; the exit code of the run that ended last."""
    from trainwarden.commands.recovering import Shown, finish
    from trainwarden.isolation import job_environ
    from trainwarden.keys import SigningKey
    from trainwarden.respond.alerts.secrets import without_secrets
    from trainwarden.respond.chain import Means, keep_going

    summary(console, result)
    details = shows_details(config, args.show_findings)
    shown = Shown(console, details)
    env = without_secrets(job_environ(), config)
    try:
        means = Means(store, config, SigningKey.load(), env, shown, config_file, watcher_of(config))
        chain = keep_going(means, result, clean_room=args.clean_room)
    finally:
        shown.close()
    return finish(args, console, chain, _as_json(chain.result, details), details)


def shell_code(code: int) -> int:
    """An exit code as a shell tells it: 128 + n for a process that signal n ended."""
    return code if code >= 0 else 128 - code


def command_words(words: Sequence[str]) -> list[str]:
    """The launch command after `--`. Raises UsageError when there is none."""
    argv = list(words[1:] if words[:1] == ["--"] else words)
    if not argv:
        raise UsageError("no command to run", hint="trainwarden run -- torchrun --nproc-per-node 2 train.py")
    return argv


def with_policy(config: Config, on_environment_change: str | None) -> Config:
    """The configuration with the policy that the command line names, if it names one."""
    if on_environment_change is None:
        return config
    policy = msgspec.structs.replace(config.policy, environment_changed=on_environment_change)
    return msgspec.structs.replace(config, policy=policy)


def with_budget(config: Config, budget: str | None) -> Config:
    """The configuration with the audit's budget that the command line names, if it names one.

    Raises:
        UsageError: it is no share.
    """
    if budget is not None:
        config = msgspec.structs.replace(config, audit=msgspec.structs.replace(config.audit, budget=budget))
    _ = config.audit.share
    return config


@contextmanager
def progress_bar(console: Console) -> Iterator[_SealBar | None]:
    """A bar while files are sealed; nothing unless stderr is a terminal."""
    if not console.is_terminal:
        yield None
        return
    bar = _SealBar(console)
    try:
        yield bar
    finally:
        bar.stop()


class _Stderr(io.StringIO):
    """Our stderr, unbuffered; when nobody reads it any more, the run and its exit code go on as they are."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            os.write(2, text.encode(errors="replace"))
        return len(text)

    def isatty(self) -> bool:
        return os.isatty(2)

    def fileno(self) -> int:
        return 2


class _SealBar:
    """Shows how many of the bytes to seal are hashed; gone once they all are."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

        columns = (TextColumn("sealing {task.description}"), BarColumn(), DownloadColumn())
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("", total=None)
        self._shown = False

    def __call__(self, done: int, total: int, label: str) -> None:
        if not self._shown:
            self._shown = True
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total, description=label)

    def stop(self) -> None:
        if self._shown:
            self._bar.stop()


def add_show_findings(parser: argparse.ArgumentParser) -> None:
    """Declare how much of a finding is told on the terminal."""
    parser.add_argument(
        "--show-findings",
        choices=("full", "short"),
        help="on the terminal: what was found, or only that something was (default: full, unless an alert channel "
        "with the audience security gets the details)",
    )


def shows_details(config: Config, show_findings: str | None) -> bool:
    """Whether the terminal tells findings in full: not when there is a place for them that fewer people read."""
    if show_findings is not None:
        return show_findings == "full"
    return all(channel.audience != "security" for channel in config.alerts)


class Terminal:
    """Says on stderr what the supervisor tells; without `details` of a finding only that there is one."""

    def __init__(self, console: Console, bar: _SealBar | None, details: bool = True) -> None:
        self._console, self._bar, self._details = console, bar, details
        self._said: set[tuple[str, ...]] = set()  # benign explanations: a package is thousands of files

    def tell(self, event: Event) -> None:
        """One event."""
        from trainwarden.supervise.events import Notice, Started
        from trainwarden.supervise.responding import Told

        match event:
            case Started():
                if self._bar is not None:
                    self._bar.stop()
                seal = event.seal.seal
                files = seal.environment.files + seal.code.files + seal.data.files
                say(self._console, f"guarding this as run {event.run_id} ({files:,} files sealed)")
            case Notice():
                say(self._console, event.sentence + (f" ({event.hint})" if event.hint else ""), "yellow")
            case Finding():
                self._found(event)
            case Told():
                self._answered(event)
            case Undelivered():
                say(self._console, f"alerts over {event.channel} do not arrive: {event.reason}", "yellow")

    def _found(self, finding: Finding) -> None:
        if not self._details:
            return
        severity = finding.severity
        say(self._console, f"{severity.value} · {finding.detector}: {finding.seen}", _STYLE[severity])
        benign = (finding.detector, *finding.benign)
        if severity is not Severity.INFO and finding.benign and benign not in self._said:
            self._said.add(benign)
            say(self._console, f"  could also be: {'; '.join(finding.benign)}", "dim")

    def _answered(self, told: Told) -> None:
        if not self._details and not told.update:
            severity = told.alert.severity
            mine = "" if severity is Severity.LOW else " This is probably not a bug of yours."
            say(self._console, f"{severity.value} · something was found.{mine}", _STYLE[severity])
            say(self._console, f"  details: the security channel, or trainwarden show {told.run}", "dim")
        if told.action in _DONE:
            say(self._console, f"policy: {_DONE[told.action].format(run=told.run)}", "bold")


def summary(console: Console, result: RunResult) -> None:
    """Say on stderr how the run ended."""
    real = sum(f.severity is not Severity.INFO for f in result.findings)
    told = "no findings" if not real else "1 finding" if real == 1 else f"{real} findings"
    say(console, f"run {result.run_id} ended: {result.records:,} step records, {told}", "bold" if real else "")
    if not result.records:
        say(console, _NO_STEP, "yellow")
    if result.shipped is not None:
        tell_shipped(console, result.run_id, result.shipped)
    if not result.log_whole:
        say(console, "the log could not be written to its end; what was acknowledged is safe", "bold red")


def tell_shipped(console: Console, run_id: str, shipped: Shipped) -> None:
    """Say how much of the log is on the log server, and how the rest gets there."""
    if shipped.entries == shipped.of:
        say(console, f"all {shipped.of:,} entries are on the log server")
        return
    missing = shipped.of - shipped.entries
    say(console, f"{shipped.entries:,} entries are on the log server, {missing:,} are not sent yet", "yellow")
    say(console, f"to send them later: trainwarden log ship {run_id}", "yellow")


def say(console: Console, line: str, style: str = "") -> None:
    """One line of ours on stderr."""
    from rich.text import Text

    printable = "".join(c if c.isprintable() else "?" for c in line)  # names come from the job: no control codes
    console.print(Text("trainwarden: ", style="bold").append(printable, style=style))


def told_findings(result: RunResult, details: bool) -> list[object]:
    """The findings of a run for `--json`; without details their severity alone."""
    return list(result.findings) if details else [{"severity": f.severity} for f in result.findings]


def _as_json(result: RunResult, details: bool) -> dict[str, object]:
    return {
        "run": result.run_id,
        "exit_code": result.exit_code,
        "records": result.records,
        "findings": told_findings(result, details),
        "asked": result.asked,
        "log_whole": result.log_whole,
        "shipped": result.shipped,
        "clean_room": result.room,
    }
