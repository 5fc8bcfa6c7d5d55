"""The sections of a dossier, in the order in which an expert reads them (pure).

Nobody is called guilty here: what is established is what a replay proved of *digests*; of accounts, what records
say; of persons, nothing. Every sentence and every row names the items that it stands on.
"""

from __future__ import annotations

from trainwarden.dossier.sections.acts import acts, times
from trainwarden.dossier.sections.findings import finding, parties, scope
from trainwarden.dossier.sections.register import glossary, investigators, kit, register, routing, statements
from trainwarden.dossier.sections.response import containment, controls, damage, recovery
from trainwarden.dossier.sections.weighing import adaptation, causes, grade, hypotheses
from trainwarden.dossier.view import Section, View


def sections(view: View) -> list[Section]:
    """All of them."""
    makers = (
        finding, scope, parties, acts, times, causes, hypotheses, grade, adaptation, damage, containment, recovery,
        controls, statements, register, investigators, routing, kit, glossary,
    )  # fmt: skip
    return [make(view) for make in makers]
