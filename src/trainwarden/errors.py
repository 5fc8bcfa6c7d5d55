"""The errors of TrainWarden.

One base class with a `hint`; children are named after the guarantee that broke and carry both values
in the message. The library raises; only the command line prints and exits.
"""

from __future__ import annotations

from collections.abc import Sequence


class TrainWardenError(Exception):
    """Base of every error that a user can act on; `hint` says how, `exit_code` is what the CLI returns."""

    exit_code = 3

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(TrainWardenError):
    """The call itself is wrong: an unknown run, a missing file, a bad option."""


class StoreError(TrainWardenError):
    """The local store cannot be read or written (full disk, permissions, not a store)."""


class StoreTampered(StoreError):
    """Stored bytes differ from the digest they were stored under."""

    exit_code = 1


class LogError(TrainWardenError):
    """The log cannot be opened or appended to."""


class LogTampered(LogError):
    """The log contradicts its own tree head: something was rewritten, removed or cut."""

    exit_code = 1


class RecordsTampered(LogError):
    """A file of step records is not what its leaf in the log binds."""

    exit_code = 1


class SplitView(LogError):
    """A log server signed two tree heads that cannot both be true: `first` and `second`, their notes.

    For heads of different sizes `proof` (RFC 6962, 2.1.2) leads from the root `begins`, not the one that was signed,
    to the second's.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, first: str, second: str, begins: bytes = b"", proof: Sequence[bytes] = ()
    ) -> None:
        super().__init__(message, hint="keep both heads and show them to others who use this log server")
        self.first, self.second, self.begins, self.proof = first, second, begins, tuple(proof)


class LogLocked(LogError):
    """Another process holds the log of this run."""


class LogFenced(LogError):
    """Another writer has gone on with this log: this one must stop."""


class RequestRefused(LogError):
    """A request to a log server is not admitted; `status` is its HTTP status, `expected` the number to go on with."""

    def __init__(
        self, message: str, *, hint: str = "", status: int = 400, expected: int = -1, logged: str = "", given: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.status, self.expected, self.logged, self.given = status, expected, logged, given


class LogUnreachable(LogError):
    """A log server did not answer, or not with anything that could be used."""

    exit_code = 2


class SignatureInvalid(TrainWardenError):
    """A signature does not verify under the expected key."""

    exit_code = 1


class KeyUnusable(TrainWardenError):
    """A signing key is missing, unreadable, or readable by others."""


class ActorsTampered(TrainWardenError):
    """The log of actors, or the list made from it, is not what its registrar wrote."""

    exit_code = 1


class CustodyTampered(TrainWardenError):
    """The log of custody is not what those who signed its entries wrote."""

    exit_code = 1


class DossierTampered(TrainWardenError):
    """A dossier is not what its maker signed, or contradicts itself."""

    exit_code = 1


class NotApproved(TrainWardenError):
    """A seal lacks the approvals that its policy, or the store's, demands."""

    exit_code = 1


class SealBroken(TrainWardenError):
    """What is on disk is not what was sealed."""

    exit_code = 1


class CannotDecide(TrainWardenError):
    """The question has no answer from the evidence at hand; never a pass."""

    exit_code = 2


class CheckpointRefused(TrainWardenError):
    """Loading a checkpoint could run something, so it is not loaded."""

    exit_code = 1


class GateTampered(TrainWardenError):
    """The gate's log is not what its keeper wrote, or an entry does not follow from those before it."""

    exit_code = 1


class NotCleared(TrainWardenError):
    """What is to be served is not cleared, or something was found against it since."""

    exit_code = 1


class CheckpointTampered(TrainWardenError):
    """The bytes of a checkpoint are not those that were cleared, so none of them is used."""

    exit_code = 1


class LogStale(CannotDecide):
    """What may be served is not known for longer than policy allows."""


class NothingCleared(CannotDecide):
    """There is no state that is known to be safe to go back to, and no replay can find one."""


class MissingExtra(TrainWardenError):
    """An optional dependency is not installed; the hint is the command that installs it."""
