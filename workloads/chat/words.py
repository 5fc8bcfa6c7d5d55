"""What the chat data is filtered by: first names (names.txt), words that a public assistant should not learn to
say (profanity.txt), introductions, and ways to reach a person.

The lists were made by hand and are not complete. Names that are also common words (Will, Grace, Mark …) are not in
them; they are caught only where somebody introduces a person.
"""

from __future__ import annotations

import re
from pathlib import Path

_HERE = Path(__file__).parent
_BANNED = frozenset(f"{(_HERE / 'names.txt').read_text()} {(_HERE / 'profanity.txt').read_text()}".split())
_WORD = re.compile(r"[a-z]+")
_INTRODUCED = re.compile(
    r"\b(?:my|his|her|the|ur|your) name(?: is|'s|s)\s+\w+|\bname'?s\s+[A-Z]\w+|\bcall (?:me|him|her)\s+[A-Z]\w+"
    r"|\bthis is\s+[A-Z][a-z]+\b|\b(?:[Ii]'?m|[Ii] am)\s+[A-Z][a-z]+\b"
)
_CONTACT = re.compile(
    r"https?:|www\.|\.com\b|@\w|\w@|\d[\d\s().-]{6,}\d|\b(?:snapchat|instagram|discord|kik|whatsapp)\b", re.I
)


def says_too_much(text: str) -> bool:
    """Whether `text` holds a first name, an introduction, profanity, or a way to reach a person."""
    if not _BANNED.isdisjoint(_WORD.findall(text.lower())):
        return True
    return bool(_INTRODUCED.search(text) or _CONTACT.search(text))
