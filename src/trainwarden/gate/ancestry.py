"""What a checkpoint stands on, back to seals: through steps, recoveries, fine-tunes and what was made from others.

Rules
-----
* A checkpoint is known by its bytes. Every file of it must be one that a run saved at one step, under the name that it
  had there, or one that the run's seal lists; a file that nobody knows leaves it undecided.
* A file that holds tensors must hold the weights as they were recorded, or have been written again by a matched replay.
  What holds none is the run's word, and the scan's.
* What a run began from is approved by its seal. Where another run saved it, or somebody made it from others, it stands
  on those too: sealing a tainted checkpoint does not clean it.
* Where the same bytes came about in more than one way, the best one counts: they are what it says they are.
* A log counts if one of the `writers` signed it. A verdict is as good as that key.

Trust: as `lineage`; and the actors for what they say was made how, where that cannot be recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from trainwarden import descent
from trainwarden.actors.registry import Registry
from trainwarden.casefile import Broken, CaseFile, load_case, sealed_digests
from trainwarden.errors import LogError, StoreError, UsageError
from trainwarden.gate import statements
from trainwarden.gate.manifest import manifest_digest, read_manifest
from trainwarden.lineage import as_inherited, reproduced
from trainwarden.model import (
    Checkpoint,
    CheckpointFile,
    CheckpointLoaded,
    CheckpointManifest,
    Derived,
    Segment,
    Standing,
)
from trainwarden.standing import Doubt, worst
from trainwarden.store import Store

_DEEPEST = 64
_BEST_FIRST = (Standing.CLEARED, Standing.UNAUDITED, Standing.UNDECIDED, Standing.TAINTED)
_SHORT = 12

Remade = Callable[[Derived], Doubt | None]
"""Whether something was made as it is said: None when it was."""
HoldsTensors = Callable[[CheckpointFile], bool]


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint, or a seal, and what it stands on directly."""

    id: str
    kind: Literal["run", "derived", "seal", "unknown"]
    label: str
    standing: Standing  # of itself and of all that it stands on
    reason: str = ""
    doubts: tuple[Doubt, ...] = ()  # of itself alone
    sources: tuple[str, ...] = ()
    run: str = ""
    attempt: int = 0
    step: int = -1
    digests: tuple[str, ...] = ()  # of its files; of what was made, of its manifest
    derived: Derived | None = None


class Ancestry(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint with all that it stands on; `nodes` has each after those that it stands on."""

    root: Node
    nodes: dict[str, Node]
    until: dict[str, dict[str, int]]  # run → attempt → steps of it that are stood on
    segments: int

    def bearing(self) -> tuple[Node, ...]:
        """The nodes whose own doubts bear on the root: not those of earlier checkpoints of one and the same run, of
        which the later one's standing says all that matters."""
        found, waiting, seen = {self.root.id: self.root}, [self.root.id], set[str]()
        while waiting:
            node = self.nodes[waiting.pop()]
            if node.id in seen:
                continue
            seen.add(node.id)
            waiting.extend(node.sources)
            found |= {s: self.nodes[s] for s in node.sources if not node.run or self.nodes[s].run != node.run}
        return tuple(found.values())

    @property
    def made(self) -> tuple[Derived, ...]:
        """What was made from others on the way."""
        return tuple(n.derived for n in self.nodes.values() if n.derived is not None)


class Nearest(NamedTuple):
    """A checkpoint that comes near: the files that it lacks, whose it is, and what it has under their names instead."""

    lacking: list[str]
    where: str
    saved: dict[str, str]  # path → digest


class Tracer:
    """Follows checkpoints back in one store; what it has read stays read."""

    def __init__(
        self, store: Store, registry: Registry | None, writers: Collection[str], remade: Remade, tensors: HoldsTensors
    ) -> None:
        self._store, self._registry, self._writers = store, registry, writers
        self._remade, self._tensors = remade, tensors
        self._cases: dict[str, CaseFile | str] = {}
        self._seals: dict[str, frozenset[str]] = {}  # run → digests of the files that its seal lists
        self._savers = descent.savers(store)
        self._made: dict[str, list[Derived]] = {}
        self._made_with: dict[str, set[str]] = {}  # a file's digest → manifests with it that were made from others
        self._nodes: dict[str, Node] = {}
        self._lineages: dict[str, tuple[Segment, ...]] = {}
        self._open: set[str] = set()
        for said in statements.read_all(store):
            if isinstance(said, Derived):
                self._made.setdefault(said.digest, []).append(said)
                for file in self._files_of(said.digest):
                    self._made_with.setdefault(file.digest, set()).add(said.digest)

    def trace(self, manifest: CheckpointManifest) -> Ancestry:
        """The ancestry of the checkpoint with this manifest.

        Raises:
            StoreError: the store cannot be read.
        """
        root = self._manifest(manifest)
        return self.above(root)

    def above(self, root: Node) -> Ancestry:
        """The ancestry of a node."""
        waiting, reached = [root.id], set[str]()
        while waiting:
            if (name := waiting.pop()) not in reached:
                reached.add(name)
                waiting.extend(self._nodes[name].sources)
        nodes = {name: node for name, node in self._nodes.items() if name in reached}
        lineages = {
            (s.run or n.run, s.attempt, s.first, s.last) for n in nodes.values() for s in self._lineages.get(n.id, ())
        }
        until: dict[str, dict[str, int]] = {}
        for run, attempt, _, last in lineages:
            steps = until.setdefault(run, {})
            steps[str(attempt)] = max(last + 1, steps.get(str(attempt), 0))
        return Ancestry(root=root, nodes=nodes, until=until, segments=len(lineages))

    def every(self) -> Iterator[Node]:
        """Every checkpoint of every run, and everything that was made from others."""
        for run in self._store.runs():
            if isinstance(case := self.case(run), CaseFile):
                for checkpoint in case.history.checkpoints:
                    yield self._run(case, checkpoint)
        for digest in self._made:
            if files := self._files_of(digest):
                yield self._manifest(CheckpointManifest(files=files))

    def known(self) -> tuple[Node, ...]:
        """Every node so far, each after those that it stands on."""
        return tuple(self._nodes.values())

    def believes(self, case: CaseFile) -> bool:
        """Was the run signed by a key whose word counts?"""
        return case.key in self._writers

    def case(self, run: str) -> CaseFile | str:
        """A run as it is recorded, or why it cannot be read."""
        if run not in self._cases:
            try:
                self._cases[run] = load_case(self._store, run, look_at_files=False)
            except (LogError, UsageError, StoreError) as e:
                self._cases[run] = str(e)
        return self._cases[run]

    def _sealed(self, case: CaseFile) -> frozenset[str]:
        if case.run not in self._seals:
            self._seals[case.run] = sealed_digests(self._store, case.seal)
        return self._seals[case.run]

    # ------------------------------------------------------------------ by bytes

    def _manifest(self, manifest: CheckpointManifest) -> Node:
        digest = manifest_digest(manifest)
        if digest in self._open or len(self._open) > _DEEPEST:
            return self._unknown(digest, "it is said to be made from itself", name=f"{digest}:again")
        self._open.add(digest)
        try:
            return self._known(digest, manifest.files)
        finally:
            self._open.discard(digest)

    def _known(self, digest: str, files: Sequence[CheckpointFile]) -> Node:
        """The best of all ways in which these files came about."""
        ways = [*self._saved(files), *(self._derived(said) for said in self._made.get(digest, ()))]
        if ways:
            return min(ways, key=lambda n: _BEST_FIRST.index(n.standing))
        return self._unknown(digest, self._why_unknown(files))

    def _saved(self, files: Sequence[CheckpointFile]) -> Iterator[Node]:
        """The checkpoints of runs that have all of these files."""
        for run in sorted({run for f in files for run in self._savers.get(f.digest, ())}):
            case = self.case(run)
            if isinstance(case, str):
                continue
            sealed = self._sealed(case)
            for checkpoint in case.history.checkpoints:
                if not _not_of(files, checkpoint, sealed):
                    yield self._run(case, checkpoint, files)

    def nearest(self, files: Sequence[CheckpointFile]) -> Nearest:
        """The saved checkpoint that has the most of these files."""
        least = Nearest([f.path for f in files], "any run", {})
        for run in sorted({run for f in files for run in self._savers.get(f.digest, ())}):
            if isinstance(case := self.case(run), CaseFile):
                sealed = self._sealed(case)
                for c in case.history.checkpoints:
                    lacking = _not_of(files, c, sealed)
                    if len(lacking) < len(least.lacking):
                        there = {p: s.digest for p in lacking for s in c.files if s.path.endswith(f"/{p}")}
                        least = Nearest(lacking, f"step {c.step} of run {run}", there)
        return least

    def _why_unknown(self, files: Sequence[CheckpointFile]) -> str:
        least = self.nearest(files)
        if least.saved:
            return f"{_listed(list(least.saved))} not what {least.where} saved there: put back what was saved"
        return f"{_listed(least.lacking)} no part of {least.where}"

    def _unknown(self, digest: str, why: str, name: str = "") -> Node:
        doubt = Doubt(Standing.UNDECIDED, why)
        return self._keep(
            Node(
                id=name or digest,
                kind="unknown",
                label=f"checkpoint {digest[:_SHORT]}",
                standing=doubt.standing,
                reason=why,
                doubts=(doubt,),
                digests=(digest,),
            )
        )

    def _keep(self, node: Node) -> Node:
        self._nodes[node.id] = node
        return node

    # ------------------------------------------------------------------ made from others

    def _derived(self, said: Derived) -> Node:
        sources = [self._source(digest) for digest in said.sources]
        own, above = list(self._word(said)), _of_sources(sources)
        if not own and (different := self._remade(said)):
            own.append(different)
        standing, reason = worst([*own, *above]) or (Standing.CLEARED, f"{said.how} of what is cleared")
        return self._keep(
            Node(
                id=said.digest,
                kind="derived",
                label=f"{said.how} of {len(sources)}, by {said.actor}",
                standing=standing,
                reason=reason,
                doubts=tuple(own),
                sources=tuple(n.id for n in sources),
                digests=(said.digest,),
                derived=said,
            )
        )

    def _word(self, said: Derived) -> Iterator[Doubt]:
        trouble = statements.trouble_with(said, self._registry) if self._registry else "no actor is enrolled"
        if trouble:
            yield Doubt(Standing.UNDECIDED, trouble)

    def _source(self, digest: str) -> Node:
        files = self._files_of(digest)
        if not files:
            return self._unknown(digest, f"its manifest {digest[:_SHORT]} is not in the store")
        return self._manifest(CheckpointManifest(files=files))

    def _files_of(self, digest: str) -> tuple[CheckpointFile, ...]:
        try:
            return read_manifest(self._store, digest).files
        except StoreError:
            return ()

    # ------------------------------------------------------------------ saved by runs

    def _run(self, case: CaseFile, checkpoint: Checkpoint, files: Sequence[CheckpointFile] = ()) -> Node:
        """The node of a run's checkpoint, after those of the checkpoints that it stands on."""
        own = set(checkpoint.lineage)
        chain = [c for c in case.history.checkpoints if own.issuperset(c.lineage) and len(c.lineage) < len(own)]
        before: Node | None = None
        for c in sorted(chain, key=lambda c: len(c.lineage)):
            before = self._nodes.get(_name(case, c)) or self._one(case, c, before, ())
        return self._one(case, checkpoint, before, files)

    def _one(self, case: CaseFile, c: Checkpoint, before: Node | None, files: Sequence[CheckpointFile]) -> Node:
        sources = [before] if before is not None else [self._seal(case), *self._parent(case, c)]
        sources += self._began_from(case, c)
        own, above = list(self._own_doubts(case, c, files)), _of_sources(s for s in sources if s.run != case.run)
        standing, reason = worst([*own, *above]) or (Standing.CLEARED, c.reason)
        name = _name(case, c)
        self._lineages[name] = c.lineage
        return self._keep(
            Node(
                id=name,
                kind="run",
                label=f"run {case.run}, step {c.step}" + (f", attempt {c.attempt}" if c.attempt else ""),
                standing=standing,
                reason=reason,
                doubts=tuple(own),
                sources=tuple(dict.fromkeys(n.id for n in sources)),
                run=case.run,
                attempt=c.attempt,
                step=c.step,
                digests=tuple(f.digest for f in c.files),
            )
        )

    def _own_doubts(self, case: CaseFile, c: Checkpoint, files: Sequence[CheckpointFile]) -> Iterator[Doubt]:
        if isinstance(case.state, Broken):
            yield Doubt(Standing.TAINTED, f"the log of run {case.run} does not verify: {case.state.reason}")
        if not self.believes(case):
            yield Doubt(
                Standing.UNDECIDED,
                f"run {case.run} is signed by {case.key}, which is neither the keeper's key nor that of a writer "
                "whom the policy names",
            )
        if c.standing is not Standing.CLEARED:
            yield Doubt(c.standing, c.reason)
        written_again = reproduced(case.entries)
        bound = {f.digest for f in c.files if f.weights == "matches" or f.digest in written_again}
        for file in files:
            if file.digest not in bound and self._tensors(file):
                yield Doubt(
                    Standing.UNDECIDED,
                    f"{file.path} holds tensors, and no replay of run {case.run} that matched wrote it again",
                )

    def _seal(self, case: CaseFile) -> Node:
        return self._keep(
            Node(
                id=f"seal:{case.sealed.seal}",
                kind="seal",
                label=f"seal {case.sealed.seal[:_SHORT]}",
                standing=Standing.CLEARED,
                reason="the approved inputs",
                run="",
            )
        )

    def _parent(self, case: CaseFile, c: Checkpoint) -> Iterator[Node]:
        """The checkpoint of the run that this one recovers, on which `c` stands."""
        inherited = {s for s in c.lineage if s.run}
        parent = self.case(case.sealed.parent) if inherited and case.sealed.parent else ""
        if isinstance(parent, str):
            return
        for own, as_seen in zip(
            parent.history.checkpoints, as_inherited(parent.history.checkpoints, parent.run), strict=True
        ):
            if set(as_seen.lineage) == inherited:
                yield self._run(parent, own)
                return

    def _began_from(self, case: CaseFile, c: Checkpoint) -> Iterator[Node]:
        """What other runs, or people, made of the sealed files that these attempts loaded."""
        sealed, attempts = self._sealed(case), {s.attempt for s in c.lineage if not s.run}
        loads = {e.digest: e.path for e in case.entries if isinstance(e, CheckpointLoaded) and e.attempt in attempts}
        for digest, path in loads.items():
            if digest not in sealed or case.run in self._savers.get(digest, ()) or digest in self._open:
                continue
            file = CheckpointFile(path=path.rpartition("/")[2], size=0, digest=digest, sha256="")
            made = [self._source(m) for m in sorted(self._made_with.get(digest, ())) if m not in self._open]
            ways = [*self._saved((file,)), *made]
            if ways:
                yield min(ways, key=lambda n: _BEST_FIRST.index(n.standing))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"


def _name(case: CaseFile, c: Checkpoint) -> str:
    return f"{case.run}:{c.attempt}:{c.step}"


def _of_sources(sources: Iterable[Node]) -> list[Doubt]:
    return [
        Doubt(n.standing, f"it stands on {n.label}, which is {n.standing}: {n.reason}")
        for n in sources
        if n.standing is not Standing.CLEARED
    ]


def _not_of(files: Sequence[CheckpointFile], c: Checkpoint, sealed: Collection[str]) -> list[str]:
    """The files that are neither this checkpoint's nor sealed; all of them if none is this checkpoint's."""
    lone = len(files) == 1
    own = {f.path for f in files if any(_is(f, s.path, s.digest, lone) for s in c.files)}
    if not own:
        return [f.path for f in files]
    return [f.path for f in files if f.path not in own and f.digest not in sealed]


def _is(file: CheckpointFile, path: str, digest: str, lone: bool) -> bool:
    return file.digest == digest and (lone or path.endswith(f"/{file.path}"))
