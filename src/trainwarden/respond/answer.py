"""How a run's findings are answered, from its configuration: causes, policy and alert channels together."""

from __future__ import annotations

from trainwarden.config import Config
from trainwarden.detect import all_detectors
from trainwarden.detect.causes import Causes
from trainwarden.detect.policy import action_by
from trainwarden.supervise.responding import Response

_OTHERS = ("engine", "recorder")  # what raises findings and is no detector


def response_to(config: Config) -> Response:
    """The answer to findings that `config` asks for; one object serves one run.

    Raises:
        UsageError: the policy names a detector that there is not.
    """
    known = (*(d.id for d in all_detectors()), *_OTHERS)
    return Response(causes=Causes(), action_of=action_by(config.policy.detectors, known))
