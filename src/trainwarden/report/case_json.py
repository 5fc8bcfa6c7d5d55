"""A case as one JSON object: what the page and the terminal shorten is here whole, step records apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from trainwarden.casefile import CaseFile, coverage_share, indexed
from trainwarden.descent import Frozen
from trainwarden.detect.causes import alerts_of
from trainwarden.lineage import last_cleared
from trainwarden.model import Finding, StepRecord
from trainwarden.report.events import timeline
from trainwarden.report.tables import approval_line
from trainwarden.sampling import sampled


def case_json(case: CaseFile, frozen: Sequence[Frozen] = ()) -> dict[str, Any]:
    """The case in built-in types; each entry carries its log index."""
    safe = last_cleared(case.history.checkpoints)
    told = {
        "run": case.run,
        "path": case.path,
        "answer": case.answer,
        "sentence": case.sentence,
        "state": case.state,
        "key": case.key,
        "key_source": case.key_source,
        "frozen": frozen,
        "parent": case.sealed.parent,
        "seal": case.seal,
        "approved": approval_line(case),
        "audited": case.audited,
        "coverage": coverage_share(case.audited),
        "sampled": _sampled(case),
        "attempts": case.history.attempts,
        "segments": case.history.segments,
        "checkpoints": case.history.checkpoints,
        "last_cleared_step": safe.step if safe else None,
        "alerts": alerts_of(indexed(case.entries, Finding)),
        "timeline": timeline(case.entries),
        "entries": [
            {"index": index, "entry": entry}
            for index, entry in enumerate(case.entries)
            if not isinstance(entry, StepRecord)
        ],
    }
    built: dict[str, Any] = msgspec.to_builtins(told)
    return built


def _sampled(case: CaseFile) -> dict[str, Any] | None:
    """The sampled audit with its shares worked out."""
    told = sampled(case.entries)
    if told is None:
        return None
    built: dict[str, Any] = msgspec.to_builtins(told, str_keys=True)
    parts = [(built["all"], told.all), *((built["kinds"][kind.value], part) for kind, part in told.kinds.items())]
    for part, bought in parts:
        part["share"] = bought.share
    return built | {"waiting": told.waiting}
