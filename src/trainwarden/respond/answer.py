"""How a run's findings are answered, from its configuration: causes, policy and alert channels together."""

from __future__ import annotations

from trainwarden.config import Config
from trainwarden.detect import all_detectors
from trainwarden.detect.causes import Causes
from trainwarden.detect.policy import action_by
from trainwarden.respond.alerts import Meter, outlets_of
from trainwarden.supervise.responding import Response

_OTHERS = ("engine", "recorder")  # what raises findings and is no detector


def response_to(config: Config) -> Response:
    """The answer to findings that `config` asks for; one object serves one run.

    Raises:
        UsageError: the policy names a detector that there is not, or an alert channel's settings cannot be used.
        MissingExtra: an alert channel needs a package that is not installed.
    """
    known = (*(d.id for d in all_detectors()), *_OTHERS)
    action_of = action_by(config.policy.detectors, known)
    if not config.alerts:
        return Response(causes=Causes(), action_of=action_of)
    meter = Meter()
    return Response(Causes(), action_of, outlets_of(config, meter), meter)
