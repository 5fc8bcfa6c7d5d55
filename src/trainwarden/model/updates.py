"""What the supervisor made of the slices of updates that ranks told: an entry when something is new or wrong."""

from __future__ import annotations

from trainwarden.model.base import Noun


class Misfit(Noun):
    """Elements of one tensor that an update left otherwise than the optimizer's rule says."""

    tensor: str
    part: str  # "weights", or the name of an entry of the optimizer's state
    wrong: int = 0  # elements beyond the rule's rounding
    looked: int = 0  # elements compared
    element: int = 0  # place in the tensor of the one that is furthest off
    before: float = 0.0
    expected: float = 0.0
    seen: float = 0.0
    fits: str = ""  # what would explain it simply, in plain words


class UpdateSeen(Noun, tag="update_seen"):
    """How an optimizer's updates compare with its rule: said at its first update, when one differs, and at the end."""

    attempt: int
    rank: int
    step: int
    optimizer: int
    kind: str  # module and name of the optimizer's class, as the rank says
    rule: str = ""  # the rule that it is compared with
    unchecked: str = ""  # why it is not compared, or what of it is not
    misfits: tuple[Misfit, ...] = ()
    more: int = 0  # misfits at this step beyond those listed
    updates: int = 0  # compared so far
    tensors: int = 0  # different tensors among them
    elements: int = 0
    differing: int = 0  # updates with a misfit so far
    missed: int = 0  # updates that could not be compared because the supervisor was too slow
    last: bool = False  # the rank has ended
    wall_ns: int = 0
