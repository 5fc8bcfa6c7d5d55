"""The words of a dossier."""

GLOSSARY = (
    ("account", "what a system knows somebody as; whoever has its password or key can use it"),
    ("act", "something that a record says was done to an artefact"),
    ("alleged", "said, and not proved; everything about people here is"),
    ("artefact", "a file, process or state that was changed or planted, by digest"),
    (
        "commitment",
        "a hash of a field with a random salt: it shows later that the field was not changed, and nothing now",
    ),
    ("custody", "who took a record in, when, and that it is the same since"),
    ("digest", "a number that two different files do not share"),
    ("edition", "this dossier as one audience gets it: other fields hidden, the same root"),
    ("finding", "a suspicion raised by a detector; it proves nothing by itself"),
    ("grade", "how well a hypothesis stands, in words"),
    ("inclusion proof", "a few hashes that show that an entry is in a log whose head was signed"),
    ("matched, diverged", "a replay from sealed inputs gave the recorded digests bit for bit, or did not"),
    ("respondent", "whoever the allegation is about; they are heard"),
    ("seal", "the approved inputs of a run, by digest, signed before it began"),
    ("tree head", "the signed size and root of a log; witnesses are others who signed it too"),
    ("verdict", "what a replay says: matched, diverged, or could not be decided"),
)
