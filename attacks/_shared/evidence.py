"""What several techniques leave, and where their numbers differ first."""

from __future__ import annotations

from trainwarden.redteam.interface import Evidence, When

CHANGED = Evidence(When.LIVE, "environment")  # a sealed file changed while the job ran
REFUSED = Evidence(When.BEFORE_START, "seal")  # what would be started is not what was approved
GRADIENT_DIFFERS = Evidence(When.AUDIT, "replay", "local_gradients", exact=("step", "rank", "tensor"))
BATCH_DIFFERS = Evidence(When.AUDIT, "replay", "batch", needed=False)

# Where the first tampered numbers may be seen: the stages that replays and findings name.
BATCH = ("batch",)
GRADIENT = ("local_gradients",)
REDUCTION = ("local_gradients", "reduced_gradients")
UPDATE = ("optimizer_state", "weights")
BETWEEN = ("weights before", "weights")  # changed after an update: the next step begins with other weights
LOSS = ("activations", "local_gradients")
