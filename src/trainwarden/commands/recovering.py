"""Recoveries as `run` and `recover` show them: on stderr, with a bar while something is replayed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import msgspec

from trainwarden.commands.common import print_json
from trainwarden.commands.run import Terminal, progress_bar, say, shell_code, summary
from trainwarden.respond.chain import Chain, Link
from trainwarden.respond.hears import Hears

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from trainwarden.model import Verdict
    from trainwarden.respond.point import Point
    from trainwarden.supervise.events import Event


class Shown(Hears):
    """Everything that recoveries tell, on a console; `close` when they are over.

    Without `details` neither what was moved nor what a replay gave: that is for the channels that fewer people read.
    """

    def __init__(self, console: Console, details: bool = True) -> None:
        self._console, self._details = console, details
        self._bars = progress_bar(console)
        self._sealing = self._bars.__enter__()
        self._terminal = Terminal(console, self._sealing, details)
        self._replaying: Progress | None = None

    def close(self) -> None:
        self._end_bar()
        self._bars.__exit__(None, None, None)

    def says(self, sentence: str) -> None:
        self._end_bar()
        if self._details:
            say(self._console, sentence)

    def replays(self, point: Point) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        steps = sum(s.last - s.first + 1 for s in point.audit)
        self.says(f"replaying {steps:,} steps first: {_goal(point)}")
        if not self._console.is_terminal:
            return
        columns = (TextColumn("replaying steps"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._replaying = Progress(*columns, console=self._console, transient=True)
        self._replaying.add_task("", total=steps)
        self._replaying.start()

    def step(self, attempt: int, step: int) -> None:
        if self._replaying is not None:
            self._replaying.advance(self._replaying.task_ids[0])

    def verdict(self, verdict: Verdict) -> None:
        from rich.text import Text

        from trainwarden.commands.audit import sentence

        if self._details:
            say(self._console, Text.from_markup(sentence(verdict)).plain)

    def event(self, event: Event) -> None:
        self._terminal.tell(event)

    def sealing(self, done: int, total: int, label: str) -> None:
        if self._sealing is not None:
            self._sealing(done, total, label)

    def _end_bar(self) -> None:
        if self._replaying is not None:
            self._replaying.stop()
            self._replaying = None


def _goal(point: Point) -> str:
    return f"the checkpoint of step {point.checkpoint.step} stands on them" if point.checkpoint else point.why


def finish(
    args: argparse.Namespace, console: Console, chain: Chain, more: dict[str, object], details: bool = True
) -> int:
    """Say how a chain ended and give its exit code; `more` goes into the JSON object."""
    summary(console, chain.result)
    links = chain.links if details else [msgspec.structs.replace(each, cause="", replays="") for each in chain.links]
    for link in (each for each in links if each.parent):
        _say_link(console, link)
    if chain.gave_up:
        say(console, f"no further recovery: {chain.gave_up}", "bold red")
        say(console, f"hint: {chain.hint}", "yellow")
    if args.json:
        print_json({**more, "exit_code": chain.result.exit_code, "runs": list(links), "gave_up": chain.gave_up})
    return shell_code(chain.exit_code)


_RESUME_HINT = 'say how it resumes: [replay] resume = "--resume {checkpoint}" in trainwarden.toml'


def _say_link(console: Console, link: Link) -> None:
    how = f"run {link.run} went on from step {link.from_step} of run {link.parent}"
    took = sum(s for name, s in link.seconds.items() if name != "first_step")
    words = [f"{took:.1f} s to its start"]
    words += [f"its own first steps: {link.replays}"] if link.replays else []
    words += [f"in a clean room ({link.clean_room})"] if link.clean_room else []
    say(console, f"{how} ({'; '.join(words)})", "bold red" if link.replays == "diverged" else "")
    if not link.loaded:
        if link.checkpoint:
            say(console, f"the script did not load {link.checkpoint}: it began anew ({_RESUME_HINT})", "yellow")
        else:
            say(console, "it was to begin anew, and loaded a state that no log knows: do not trust it", "bold red")
