"""Attribution: evidence of custody joined to artefacts and to who wrote them; hypotheses side by side, never guilt."""

from trainwarden.attribute.attributing import attribute
from trainwarden.attribute.nouns import Attribution

__all__ = ["Attribution", "attribute"]
