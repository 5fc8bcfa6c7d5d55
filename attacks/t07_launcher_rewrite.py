"""07, launcher rewrite: what is executed is not what was configured.

How an insider does it: a line in the environment's `torchrun` changes an argument after the configuration was saved
and printed; here the seed, so that the run cannot be reproduced. The command that everybody sees stays as it was.

Precondition: write access to the launcher (U, E). Expected evidence: an approved job is not started (the launcher is
sealed code). A launcher that was rewritten before the seal is sealed as it is: then the ranks' recorded arguments alone
show it, and nothing compares them with the command. Effect: the job is not started. Benign twin: another seed by the
job's own option, sealed as such. Clean-up: the range puts the environment back.
"""

from __future__ import annotations

from attacks._shared.evidence import REFUSED
from attacks._shared.seeded import OTHER_SEED
from trainwarden.redteam.interface import Act, Effect, Moment, Technique, Variant
from trainwarden.redteam.place import Range

LINE = b"import sys\n"
REWRITE = b"""import sys
sys.argv = [str(int(w) + 1) if sys.argv[i - 1] == "--seed" else w for i, w in enumerate(sys.argv)]
"""


def rewrite(place: Range) -> None:
    """The launcher adds one to the seed that it was given."""
    place.edit(place.env / "bin" / "torchrun", lambda source: source.replace(LINE, REWRITE, 1))
    place.note("the launcher starts the job with another seed")


TECHNIQUE = Technique(
    id="07",
    slug="launcher-rewrite",
    title="arguments are changed after they were approved",
    needs="UE",
    atlas="ATT&CK T1565.001",
    variants=(
        Variant(
            name="seed",
            does="torchrun passes on another seed than it was given, after the seal was approved",
            acts=(Act(Moment.START, rewrite),),
            expects=(REFUSED,),
            effect=Effect.ENDED,
            options=(),
            approved=True,
            needs=("ranks",),
        ),
    ),
    twin=OTHER_SEED,
)
