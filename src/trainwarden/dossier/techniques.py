"""The id at MITRE of what was done to an artefact: ATLAS (v5.6) where it has one, else ATT&CK.

A technique says how something is done, not who did it or why. Source: the catalogue of sabotage in attacks/.
"""

from __future__ import annotations

_BY_WORD = (
    ("killed", "T1489"),
    ("planted", "T1546.018"),
    ("code in memory", "AML.T0018.000"),
    ("environment", "AML.T0010.001"),
    ("changed code", "AML.T0010.001"),
    ("changed data", "AML.T0020"),
    ("checkpoint", "AML.T0018.000"),
)
_NAMES = {
    "AML.T0010.001": "AI supply chain compromise: AI software",
    "AML.T0018.000": "Manipulate AI model: poison AI model",
    "AML.T0020": "Poison training data",
    "T1489": "Service stop",
    "T1546.018": "Event-triggered execution: Python startup hooks",
}


def technique_of(what: str) -> str:
    """The id for what an artefact's record says was done, "" where none fits."""
    return next((technique for word, technique in _BY_WORD if word in what), "")


def technique_name(technique: str) -> str:
    """What a technique is called."""
    return _NAMES.get(technique, "")
