"""The batch: another step's or rank's, samples reordered or duplicated, one entry edited, or read off what was kept.

Rules
-----
* Values that the recorder kept are the suspect's; they are believed only when their digest is the recorded one,
  which was committed to before any question was asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trainwarden.audit.hypotheses.base import (
    Answer,
    Budget,
    Idea,
    Question,
    Recipe,
    Target,
    no_value,
    not_tried,
    recipe,
    search_tensors,
)
from trainwarden.audit.hypotheses.elsewhere import elsewhere
from trainwarden.audit.perturb import BatchFrom, Element, Rows
from trainwarden.errors import CannotDecide
from trainwarden.model import Stage

if TYPE_CHECKING:
    from torch import Tensor

ALL_ORDERS = 7  # rows up to which every permutation is tried
PAIRS = 512  # rows up to which every pair is swapped or duplicated
VALUES = 65_536  # values tried at one position
SHOWN = 20
_STAGE = frozenset({Stage.BATCH})


def _swapped(q: Question, budget: Budget) -> Answer:
    known = dict(q.history.batches)
    for rank in q.captures:
        detail = q.recorded.get((rank, Stage.BATCH))
        if rank != q.at.rank and detail is not None:
            known[q.at.step, rank] = detail
    if not known:
        return not_tried("no batch digests of other steps or ranks were given")
    every = () if len(q.captures) == 1 else (q.at.rank,)
    return elsewhere(q, known, "the batch was", lambda step, rank: (BatchFrom(step=step, rank=rank, ranks=every),))


def orders(rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Row orders that a loader, a bug or a hand would make, with what each is called."""
    if rows < 2:
        return
    straight = tuple(range(rows))
    yield "reversed", straight[::-1]
    for k in range(1, rows):
        yield f"rotated by {k}", straight[k:] + straight[:k]
    yield "cut to the even rows", straight[::2]
    yield "cut to the first half", straight[: rows // 2]
    yield "cut by its last row", straight[:-1]
    if rows <= PAIRS:
        for i, j in itertools.permutations(straight, 2):
            yield f"with row {i} also in place of row {j}", (*straight[:j], i, *straight[j + 1 :])
        for i, j in itertools.combinations(straight, 2):
            swapped = list(straight)
            swapped[i], swapped[j] = j, i
            yield f"with rows {i} and {j} exchanged", tuple(swapped)
    for i in straight:
        yield f"with every row a copy of row {i}", (i,) * rows
    half = straight[: rows // 2]
    yield "with its second half a copy of its first", (half + half + straight[-1:])[:rows]
    if rows <= ALL_ORDERS:
        yield from (("in another order", order) for order in itertools.permutations(straight))


def _alone(q: Question, rank: int, rows: int) -> bool:
    """Whether some tensor of the batch with as many rows is as it should be."""
    differing = {t.name for t in q.targets if t.rank == rank}
    batch = q.clean(rank, Stage.BATCH)
    return any(t.dim() and t.shape[0] == rows and name not in differing for name, t in batch.items())


def _reordered(q: Question, budget: Budget) -> Answer:
    def candidates(target: Target) -> Iterator[Recipe]:
        rows = q.value(target).shape[0] if q.value(target).dim() else 0
        alone = q.value(target).dim() == 1 and _alone(q, target.rank, rows)
        for text, order in orders(rows):
            if alone and len(set(order)) < rows == len(order):
                continue  # a label in place of another is one edit, not a sample twice: see "entry edited"
            yield recipe(q, Rows(stage=Stage.BATCH, order=order), f"the samples were fed {text}")

    limits = f"orders of more than {ALL_ORDERS} rows beyond rotations, pairs and copies"
    return search_tensors(q, budget, candidates, limits)


def _alphabet(q: Question, target: Target) -> Iterator[int]:
    """Values of the same tensor on any rank first, then all from 0 up to the largest power of two above them."""
    import torch

    seen = [q.clean(r, Stage.BATCH).get(target.name) for r in sorted(q.captures)]
    present = torch.cat([t.flatten() for t in seen if t is not None]).unique().tolist()
    yield from (int(v) for v in present)
    yield from (-100, -1)
    top = 1 << max(4, int(max(present)).bit_length())
    yield from (v for v in range(min(top, VALUES)) if v not in set(present))


def _edited(q: Question, budget: Budget) -> Answer:
    if not q.targets:
        return not_tried(no_value(q))

    def candidates(target: Target) -> Iterator[Recipe]:
        tensor = q.value(target)
        if tensor.is_floating_point() or tensor.is_complex():
            return
        old = tensor.flatten().tolist()
        alphabet = list(dict.fromkeys(_alphabet(q, target)))
        for value in alphabet:
            for i, was in enumerate(old):
                if value != was and _fits_type(value, tensor):
                    text = f"entry {i} of {target.name} was changed from {was} to {value}"
                    yield recipe(q, Element(stage=Stage.BATCH, index=i, value=value), text)

    limits = f"two entries at once, floating-point inputs, values from {VALUES:,} up"
    return search_tensors(q, budget, candidates, limits)


def _fits_type(value: int, tensor: Tensor) -> bool:
    import torch

    if tensor.dtype is torch.bool:
        return value in (0, 1)
    info = torch.iinfo(tensor.dtype)
    return bool(info.min <= value <= info.max)


def _kept(q: Question, budget: Budget) -> Answer:
    rank = q.at.rank
    if rank not in q.kept_batches:
        return not_tried("the recorder did not keep the batch's values")
    kept = _load(q.kept_batches[rank])
    clean, claimed = q.clean(rank, Stage.BATCH), q.claimed(rank, Stage.BATCH)
    names = [t.name for t in q.targets if t.rank == rank]
    if not names:
        return not_tried(no_value(q))
    if (false := [n for n in names if n in kept and q.digest(Stage.BATCH, kept[n]) != claimed[n]]) or any(
        n not in kept for n in names
    ):
        which = false[0] if false else next(n for n in names if n not in kept)
        return Answer(tried=1, limits=f"the kept values of {which} do not have the recorded digest")
    texts, changed = [], {}
    for name in names:
        text, entries = difference(clean[name], kept[name])
        texts.append(f"{name}: {text}")
        changed[name] = entries
    return Answer(
        tried=1,
        sentence="the recorded batch itself shows it: " + "; ".join(texts),
        parameters={"changed": changed},
        solved={Target(rank, n): Recipe(texts[0], {}, lambda t: kept[t.name]) for n in names},
        covered=frozenset(Target(rank, n) for n in names),
        digest=q.wanted(q.place).hex() if q.place.rank == rank else claimed[names[0]].hex(),
    )


def difference(clean: Tensor, kept: Tensor) -> tuple[str, list[list[float]]]:
    """What differs between two tensors in words, and up to `SHOWN` entries as [flat index, clean, kept]."""
    if clean.shape != kept.shape or clean.dtype != kept.dtype:
        shapes = f"{clean.dtype}{tuple(clean.shape)} became {kept.dtype}{tuple(kept.shape)}"
        return shapes, []
    old, new = clean.flatten(), kept.flatten()
    where = (old != new).nonzero().flatten().tolist()
    entries = [[i, old[i].item(), new[i].item()] for i in where[:SHOWN]]
    shown = ", ".join(f"entry {i}: {a} became {b}" for i, a, b in entries[:5])
    more = f" and {len(where) - 5} more" if len(where) > 5 else ""
    return f"{len(where)} of {old.numel()} entries differ ({shown}{more})", entries


def _load(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as e:
        raise CannotDecide(f"cannot read the kept batch {path}: {e}") from e
    return tensors


IDEAS = (
    Idea("batch of another step or rank", "the batch was that of another step or rank", _STAGE, _swapped),
    Idea("recorded batch", "the batch that the recorder kept shows what was changed", _STAGE, _kept),
    Idea("samples reordered or duplicated", "samples were put in another order, or twice", _STAGE, _reordered),
    Idea("entry edited", "one label, token or other integer was changed", _STAGE, _edited),
)
