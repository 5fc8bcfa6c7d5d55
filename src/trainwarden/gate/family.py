"""A checkpoint's family: all that it stands on, and all that stands on what is tainted among that, served ones first.

Trust: as `ancestry`. What was made from others is shown as it is said, and not made again here.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from trainwarden.errors import StoreError
from trainwarden.gate.ancestry import Ancestry, Node, Tracer
from trainwarden.gate.incidents import Incidents
from trainwarden.gate.manifest import read_manifest
from trainwarden.gate.registry import fold
from trainwarden.model import CheckpointManifest, GateEntry, Standing
from trainwarden.store import Store


class Descendant(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint that stands on something tainted, and the names that it is, or was, served as."""

    node: Node
    of: tuple[str, ...]  # ids of what is tainted
    names: tuple[str, ...] = ()  # that lead to it now
    earlier: tuple[str, ...] = ()  # that it could be rolled back to


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """What `trainwarden lineage` shows; `nodes` has each after those that it stands on."""

    digest: str
    root: str
    nodes: tuple[Node, ...]
    tainted: tuple[str, ...]  # the first in each line: what they stand on is not tainted
    descendants: tuple[Descendant, ...]  # served ones first
    open: tuple[str, ...] = ()  # incidents that are open on the runs it stands on


def family_of(
    store: Store, tracer: Tracer, digest: str, manifest: CheckpointManifest, entries: Iterable[GateEntry]
) -> Family:
    """The family of the checkpoint with this manifest.

    Raises:
        GateTampered: the gate's log does not follow.
        StoreError: the store cannot be read.
    """
    ancestry = tracer.trace(manifest)
    tainted = _first_tainted(ancestry)
    every = {n.id: n for n in (*ancestry.nodes.values(), *(tracer.every() if tainted else ()))}
    names, earlier = _served(store, tracer, entries, every)
    descendants = []
    for node in list(every.values()):
        above = tracer.above(node).nodes.keys() - {node.id}
        if of := tuple(t for t in tainted if t in above):
            descendants.append(
                Descendant(node=node, of=of, names=names.get(node.id, ()), earlier=earlier.get(node.id, ()))
            )
    descendants.sort(key=lambda d: (not d.names, not d.earlier, d.node.run, d.node.step))
    shown = dict.fromkeys((*ancestry.nodes, *tainted, *(d.node.id for d in descendants)))
    for d in descendants:
        shown |= dict.fromkeys(tracer.above(d.node).nodes)
    everything, incidents = {n.id: n for n in tracer.known()}, Incidents(store)
    return Family(
        digest=digest,
        root=ancestry.root.id,
        nodes=tuple(n for name, n in everything.items() if name in shown),
        tainted=tainted,
        descendants=tuple(descendants),
        open=tuple(told for run in sorted(ancestry.until) for told in incidents.open_on(run)),
    )


def _first_tainted(ancestry: Ancestry) -> tuple[str, ...]:
    def is_bad(name: str) -> bool:
        return ancestry.nodes[name].standing is Standing.TAINTED

    return tuple(n.id for n in ancestry.nodes.values() if is_bad(n.id) and not any(map(is_bad, n.sources)))


def _served(
    store: Store, tracer: Tracer, entries: Iterable[GateEntry], every: dict[str, Node]
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Node → the names that lead to it, and those that did before; what is served is added to `every`."""
    now: dict[str, tuple[str, ...]] = {}
    before: dict[str, tuple[str, ...]] = {}
    for name, promotions in fold(entries).names.items():
        for promotion in promotions:
            node = _node_of(store, tracer, promotion.digest)
            if node is None:
                continue
            every.setdefault(node.id, node)
            found = now if promotion is promotions[-1] else before
            found[node.id] = tuple(dict.fromkeys((*found.get(node.id, ()), name)))
    return now, before


def _node_of(store: Store, tracer: Tracer, digest: str) -> Node | None:
    try:
        return tracer.trace(read_manifest(store, digest)).root
    except StoreError:
        return None
