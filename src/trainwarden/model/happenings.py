"""What happens around training as the watcher sees it: processes, files, code in memory, the end."""

from __future__ import annotations

from trainwarden.model.base import Noun
from trainwarden.model.sealed import Approval, Numerics


class ProcessStarted(Noun, tag="process"):
    """A rank came to life: everything needed to start it again elsewhere, private values left out."""

    attempt: int
    rank: int
    world: int
    pid: int
    argv: tuple[str, ...]  # sys.orig_argv
    cwd: str
    executable: str
    env_digest: str  # of the environment variables; their values stay in the run's private folder
    numerics: Numerics
    wall_ns: int = 0


DCP = "dcp"
"""The format of a part of a checkpoint of `torch.distributed.checkpoint`: the tensors that one rank wrote."""
DCP_INDEX = "dcp-index"
"""The format of its index, which says where in which part a tensor lies."""


class CheckpointSaved(Noun, tag="checkpoint_saved"):
    """A file of model or training state written by a rank, hashed as a file by the supervisor."""

    attempt: int
    rank: int
    step: int  # optimizer steps done when it was written
    path: str
    digest: str
    size: int
    format: str  # "safetensors" | "torch" | `DCP` | `DCP_INDEX` | "other"
    weights: str = ""  # "matches": every recorded weight digest is in the file; "differs: …"; "" = not checked
    sidecar: str = ""  # digest of the recorder's own complement (RNG, loader position) in the object store
    renamed_from: str = ""  # where it stood before, when this is a rename of a file told of earlier
    reached: int = -1  # steps of this rank that had arrived when it told of the file, −1 = not noted


class CheckpointLoaded(Noun, tag="checkpoint_loaded"):
    """A file of state read by a rank; `known_step` is the step it was recorded at, −1 when the log does not know it."""

    attempt: int
    rank: int
    path: str
    digest: str
    known_step: int = -1
    sealed: bool = False  # the seal lists this path (a changed sealed file is told as `FileChanged`)
    newer_gone: str = ""  # a file that this run saved last, at a later step, and that was no longer there


class DataOpened(Noun, tag="data_opened"):
    """A data file that a rank opened and the seal did not list. `changed_ns`: when its inode last changed."""

    attempt: int
    rank: int
    path: str
    digest: str
    size: int
    changed_ns: int = 0


class Writer(Noun):
    """The process that the kernel named when a file was changed or a signal sent.

    −1 and "" where it was gone before it was looked at.

    A process is not a person: `login_uid` is who logged in, `uid` as whom it ran when it did.
    """

    pid: int
    uid: int = -1
    login_uid: int = -1
    program: str = ""
    argv: tuple[str, ...] = ()


class ProcessExited(Noun, tag="exit"):
    """A rank or the launch command ended: `code` is its exit status, negative for a signal."""

    attempt: int
    rank: int  # −1: the launch command itself
    pid: int
    code: int
    reason: str = ""
    wall_ns: int = 0
    known: bool = True  # False: the status went to another parent; `code` is then −1 and says nothing
    goodbye: bool = False  # the rank said that it ends in order
    stopping: int = 0  # the signal with which the run was being stopped from outside when it ended, 0 for none
    sender: Writer | None = None  # who sent the signal that ended it (of the launch command: that is being passed on)
    told_by: str = ""  # which part of the system named the sender, or says that it was the kernel's OOM killer
    untold: str = ""  # why there is no sender


class FileChanged(Noun, tag="file_changed"):
    """A sealed file that is no longer what was sealed; the changed bytes are kept in quarantine."""

    path: str
    kind: str  # "environment" | "code" | "data"
    sealed: str  # digest in the seal, "" when the file is new
    found: str  # digest now, "" when the file is gone
    wall_ns: int = 0
    uid: int = -1  # the file's owner
    mtime_ns: int = 0
    writer: Writer | None = None
    untold: str = ""  # why there is no writer
    grown: bool = False  # a log that no rank reads, with all that was sealed still at its beginning


class Approved(Noun, tag="approved"):
    """The approvals with which the run began; `actors` is the size of the log of actors that they were judged by."""

    seal: str
    approvals: tuple[Approval, ...]
    actors: int = 0
    wall_ns: int = 0


class CleanRoom(Noun, tag="clean_room"):
    """The command runs in an environment rebuilt from the store, read-only, and not in the shared one."""

    kind: str  # "namespace": shown over the sealed places; "copy": beside them
    path: str
    covered: tuple[str, ...]  # sealed places that the command sees from the room
    left: tuple[str, ...] = ()  # sealed folders that it still sees as they are on the shared disk
    reason: str = ""  # why it is a copy
    wall_ns: int = 0


class CodeDifference(Noun):
    """A function in a rank's memory that sealed source does not account for, and the names it was found under.

    `kind`: "unsealed" (of a file that the seal does not list), "planted" (such code under a sealed module's name),
    "altered" (of a sealed file that does not say so), "generated" (of no file), "defaults", "globals" (of another
    module), "replaced" (no function any more), "moved" (sealed code in another's place).
    """

    kind: str
    slots: tuple[str, ...]  # the first few of the names
    places: int  # how many names
    function: str = ""
    file: str = ""
    line: int = 0
    sealed_file: str = ""  # where the function that belongs there is defined
    sealed_line: int = 0
    at: str = ""  # the first instruction, default or part that differs
    sealed: str = ""  # its text in sealed source
    live: str = ""  # and in memory


class CodeSeen(Noun, tag="code_seen"):
    """The code in a rank's memory, compared by the supervisor with what sealed source compiles to."""

    attempt: int
    rank: int
    step: int
    root: str  # BLAKE3 over every name and the functions that it holds
    names: int
    functions: int
    unchecked: int  # names whose code is made at run time or has no file: not compared
    differences: tuple[CodeDifference, ...] = ()  # what this look found new
    more: int = 0  # differences beyond those listed
    wall_ns: int = 0


class Deviation(Noun):
    """Something about a process that the seal does not account for.

    `kind`: "library", "generated" (a library that a compiler made while training), "deleted", "system" (a system
    library changed after the seal), "environment", "interpreter".
    """

    kind: str
    name: str  # path or variable
    expected: str = ""
    found: str = ""  # digest of the file, or the value
    bytes: int = 0


class ProcessSeen(Noun, tag="process_seen"):
    """A rank's process as /proc shows it: its mapped native code, interpreter and environment, against the seal."""

    attempt: int
    rank: int
    pid: int
    libraries: int  # files mapped as code
    sealed: int  # of these, sealed
    system: int  # of these, system libraries older than the seal, which it does not list
    writable: int = 0  # bytes of memory without a file that is writable and executable; compilers make it, oneDNN too
    deviations: tuple[Deviation, ...] = ()  # what this look found new
    wall_ns: int = 0


class RunEnded(Noun, tag="run_ended"):
    """The launch command's end as the supervisor saw it, with the number of records logged."""

    code: int
    records: int
    wall_ns: int
