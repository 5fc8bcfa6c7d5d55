"""Who signs: the log of actors and their keys, and the approval of a seal by k of n of them."""

from trainwarden.actors.approvals import Enough, Lacking, judge_approvals
from trainwarden.actors.registry import Registry, read_registry

__all__ = ["Enough", "Lacking", "Registry", "judge_approvals", "read_registry"]
