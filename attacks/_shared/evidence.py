"""What several techniques leave."""

from __future__ import annotations

from trainwarden.redteam.interface import Evidence, When

CHANGED = Evidence(When.LIVE, "environment")  # a sealed file changed while the job ran
REFUSED = Evidence(When.BEFORE_START, "seal")  # what would be started is not what was approved
GRADIENT_DIFFERS = Evidence(When.AUDIT, "replay", "local_gradients", exact=("step", "rank", "tensor"))
BATCH_DIFFERS = Evidence(When.AUDIT, "replay", "batch", needed=False)
