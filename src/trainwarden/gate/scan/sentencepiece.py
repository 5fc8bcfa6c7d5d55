"""SentencePiece's vocabularies (`tokenizer.model`, `spiece.model`): numbers and texts, by sentencepiece_model.proto."""

from __future__ import annotations

from typing import Final

from trainwarden.gate.results import Clean, Decision
from trainwarden.gate.scan.place import Place
from trainwarden.gate.scan.protobuf import BadMessage, fields
from trainwarden.gate.scan.window import Window

_MODEL: Final = {1: 2, 2: 2, 3: 2, 4: 2, 5: 2}  # pieces, trainer, normaliser, self test, denormaliser
_PIECE: Final = {1: 2, 2: 5, 3: 0}  # text, score, kind


def looks_like_sentencepiece(window: Window) -> bool:
    """Does it begin with a piece of a vocabulary?"""
    if window.read(0, 1) != b"\x0a":
        return False
    try:
        number, kind, begin, end = next(fields(window, 0, window.size, [0]))
        return (number, kind) == (1, 2) and _piece(window, begin, end, [0])
    except BadMessage:
        return False


def read_sentencepiece(window: Window, place: Place) -> Decision:
    """A vocabulary: every piece is a text, a score and a kind, and there is nothing that its readers do not know."""
    spent = [0]
    try:
        for number, kind, begin, end in fields(window, 0, window.size, spent):
            if _MODEL.get(number) != kind or (number == 1 and not _piece(window, begin, end, spent)):
                return place.undecided("sentencepiece", f"field {number} is none of a vocabulary")
    except BadMessage as e:
        return place.undecided("sentencepiece", f"it cannot be read ({e})")
    return Clean(kind="sentencepiece")


def _piece(window: Window, begin: int, end: int, spent: list[int]) -> bool:
    found = {number: kind for number, kind, _, _ in fields(window, begin, end, spent)}
    return 1 in found and all(_PIECE.get(number) == kind for number, kind in found.items())
