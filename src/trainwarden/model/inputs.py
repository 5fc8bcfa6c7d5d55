"""What goes into a step as the watcher judged it: passes over data loaders, and samples that are not what they were."""

from __future__ import annotations

from trainwarden.model.base import Noun


class PassSeen(Noun, tag="pass_seen"):
    """One pass of a rank over a data loader: what it says of its sampler, and what the watcher compared so far.

    `order`: "sequential", "random", "distributed" (PyTorch's own samplers, or classes made from them), "" = another.
    """

    attempt: int
    rank: int
    step: int
    number: int  # of the pass, counted in the rank's process
    loader: int  # of the loader, counted in the rank's process
    dataset: str = ""  # class
    samples: int = -1  # in the data set, −1 = it does not say
    sampler: str = ""  # class
    order: str = ""
    seed: int | None = None  # of the sampler, or of the generator that it draws from
    epoch: int = 0
    shuffle: bool = True
    replicas: int = 1  # parts that the sampler divides the data into
    part: int = 0  # and which of them it hands out
    even: bool = False  # it drops what does not divide evenly
    batch: int = 0  # samples in a batch
    drop_last: bool = False  # a last batch that is not full is dropped
    batches: int = 0  # handed out so far
    ordered: int = 0  # of these whose samples were compared with the order derived from the facts above
    unordered: str = ""  # why none were
    compared: int = 0  # samples compared with what the same index gave before, in this pass
    listed: int = 0  # samples compared with the manifest, in this pass
    uncompared: str = ""  # why samples were not compared
    ended: bool = False
    wall_ns: int = 0


class DataDiffers(Noun, tag="data_differs"):
    """Something about the samples of a batch that what the rank says of its loader does not account for.

    `kind`: "order" (another sample than the order has there), "lost" (the pass ended early), "changed" (the same index
    gave another sample before), "manifest" (it gives another sample than the manifest lists), "copies" (many samples
    of the data set are equal).
    """

    attempt: int
    rank: int
    step: int
    kind: str
    number: int = 0  # of the pass
    loader: int = 0
    batch: int = -1  # which batch of the pass
    index: int = -1  # of the sample
    expected: int = -1  # order: the index that belongs there; lost, copies: samples
    found: int = -1  # order: the index that came; lost: samples that came; copies: those that are copies
    parts: tuple[str, ...] = ()  # tensors of the sample that differ, by their place in the batch
    same: tuple[str, ...] = ()  # and that do not
    exact: bool = True  # False: the sampler's class makes its own order from one that is known
    wall_ns: int = 0
