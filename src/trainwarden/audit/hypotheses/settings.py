"""Hyper-parameters: recorded in the clear, so the difference from the replay is read off and its digest recomputed.

Rules
-----
* The recorded settings are believed only as far as their digest is the recorded one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainwarden.audit.hypotheses.base import Answer, Budget, Idea, Question, Target, not_tried, number
from trainwarden.audit.hypotheses.update import shown
from trainwarden.audit.perturb import SetHyper
from trainwarden.model import Stage


def _edits(q: Question, rank: int) -> Iterator[tuple[int, str, Any, Any]]:
    """(group, key, clean value, recorded value) of every setting that differs."""
    for i, (clean, recorded) in enumerate(zip(q.captures[rank].meta.groups, q.records[rank].hyper, strict=False)):
        for key in sorted(set(clean) | set(recorded)):
            if key != "params" and _listed(clean.get(key)) != _listed(recorded.get(key)):
                yield i, key, clean.get(key), recorded.get(key)


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, list | tuple) else value


def _statement(key: str, clean: Any, recorded: Any) -> str:
    text = f"{key} was {shown(recorded)} where the sealed run has {shown(clean)}"
    numbers = isinstance(clean, int | float) and isinstance(recorded, int | float)
    return f"{text} (×{number(recorded / clean)})" if numbers and clean else text


def _changed(q: Question, budget: Budget) -> Answer:
    from trainwarden.record.stages import settings_digest

    rank = q.at.rank
    if rank not in q.captures or rank not in q.records or not q.records[rank].hyper:
        return not_tried("the settings of this rank were not both recorded and captured")
    edits = {r: list(_edits(q, r)) for r in sorted(q.captures) if r in q.records}
    claimed = q.claimed(rank, Stage.HYPERPARAMETERS)
    at = q.at.tensor or next((f"group{i}" for i, *_ in edits[rank]), "")
    index = int(at.removeprefix("group")) if at.removeprefix("group").isdigit() else -1
    if not edits[rank] or not 0 <= index < len(q.records[rank].hyper):
        return Answer(tried=1)
    digest = settings_digest(q.key, q.records[rank].hyper[index])
    if claimed.get(at) != digest:
        return Answer(tried=1, limits="the settings in the record do not have the recorded digest")
    sentences = dict.fromkeys(_statement(key, clean, recorded) for _, key, clean, recorded in edits[rank])
    return Answer(
        tried=1,
        sentence="; ".join(sentences),
        parameters={f"group{i}.{key}": recorded for i, key, _, recorded in edits[rank]},
        perturbations=_perturbations(edits),
        covered=frozenset({Target(rank, at)}),
        digest=digest.hex(),
    )


def _perturbations(edits: dict[int, list[tuple[int, str, Any, Any]]]) -> tuple[SetHyper, ...]:
    joined: dict[SetHyper, list[int]] = {}
    for rank, found in edits.items():
        for group, key, _, recorded in found:
            value = tuple(recorded) if isinstance(recorded, list) else recorded
            joined.setdefault(SetHyper(key=key, value=value, group=group), []).append(rank)
    every = list(edits)
    return tuple(
        SetHyper(key=p.key, value=p.value, group=p.group, ranks=() if ranks == every else tuple(ranks))
        for p, ranks in joined.items()
    )


IDEAS = (
    Idea(
        "setting changed",
        "a setting of the optimizer was not the sealed one",
        frozenset({Stage.HYPERPARAMETERS}),
        _changed,
    ),
)
