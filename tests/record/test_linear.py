"""The linear fingerprint: what it is by definition, alike at any cut, and blind to no edit that weaker ones miss."""

from __future__ import annotations

import itertools
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch
from blake3 import blake3

from trainwarden.record import fingerprint, shares
from trainwarden.record.linear import WORDS_A_ROW, Fingerprinter, Place, fused_row_sums, plain_row_sums, share_of

KEY = bytes(range(32))
M64 = (1 << 64) - 1


def by_definition(key: bytes, words: list[int]) -> shares.Sum:
    """Σ b[i div B]·k[i mod B]·x_i mod 2^64, in plain integers."""
    own = blake3(b"linear fingerprint", key=key).digest()

    def drawn(what: str, accumulator: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}Q", blake3(f"{what} {accumulator}".encode(), key=own).digest(8 * count))

    rows = len(words) // WORDS_A_ROW + 1
    found = []
    for a in range(4):
        k, b = drawn("column", a, WORDS_A_ROW), drawn("row", a, rows)
        found.append(sum(b[i // WORDS_A_ROW] * k[i % WORDS_A_ROW] * x for i, x in enumerate(words)) & M64)
    return found[0], found[1], found[2], found[3]


def one(tensor: torch.Tensor, place: Place | None = None, device: str = "cpu") -> shares.Sum:
    return Fingerprinter(KEY).sums([(tensor.to(device), place)])[0]


def numbers(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: nothing on it is tested")
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dtype", "form"),
    [
        (torch.float32, "<{}i"),
        (torch.bfloat16, "<{}h"),
        (torch.int8, "<{}b"),
        (torch.bool, "<{}b"),
        (torch.float64, "<{}i"),
        (torch.complex64, "<{}i"),
    ],
    ids=str,
)
def test_it_is_the_sum_that_its_definition_says_bit_for_bit(dtype: torch.dtype, form: str, device: str) -> None:
    count = WORDS_A_ROW * 2 + 77
    tensor = (numbers(count) * 100).to(torch.int32).to(dtype)
    raw = bytes(tensor.view(torch.uint8).numpy())
    words = list(struct.unpack(form.format(len(raw) // struct.calcsize(form.format(1))), raw))
    assert one(tensor, device=device) == by_definition(KEY, words)


@pytest.mark.parametrize("device", DEVICES)
def test_parts_at_any_cut_and_in_any_order_add_up_to_the_whole(device: str) -> None:
    whole = numbers(3 * WORDS_A_ROW + 5)
    draw = random.Random(1)
    for _ in range(5):
        cuts = sorted(draw.sample(range(1, whole.numel()), 6))
        pieces = [
            (whole[i:j], Place((i,), tuple(whole.shape))) for i, j in itertools.pairwise([0, *cuts, whole.numel()])
        ]
        draw.shuffle(pieces)
        assert shares.add(one(t, place, device) for t, place in pieces) == one(whole, device=device)


def test_blocks_cut_in_every_dimension_add_up_to_the_whole() -> None:
    whole = numbers(12 * 10 * 300).view(12, 10, 300).to(torch.bfloat16)
    halves = [whole[a : a + 6, b : b + 5, c : c + 100] for a in (0, 6) for b in (0, 5) for c in (0, 100, 200)]
    places = [Place((a, b, c), (12, 10, 300)) for a in (0, 6) for b in (0, 5) for c in (0, 100, 200)]
    assert shares.add(one(t, p) for t, p in zip(halves, places, strict=True)) == one(whole)
    columns = [(whole[:, i : i + 1], Place((0, i, 0), (12, 10, 300))) for i in range(10)]
    assert shares.add(one(t, p) for t, p in columns) == one(whole)


def flip_sign(t: torch.Tensor) -> None:
    t[1] = -t[1]


def flip_two_signs(t: torch.Tensor) -> None:
    t[1], t[3] = -t[1], -t[3]


def negate(t: torch.Tensor) -> None:
    t.neg_()


def swap(t: torch.Tensor) -> None:
    t[[5, 900]] = t[[900, 5]]


def swap_rows_of_keys(t: torch.Tensor) -> None:
    t[:] = torch.cat([t[WORDS_A_ROW:], t[:WORDS_A_ROW]])


def one_ulp(t: torch.Tensor) -> None:
    t.view(torch.int32)[7] += 1


def top_bit(t: torch.Tensor) -> None:
    t.view(torch.int32)[7] ^= -(1 << 31)


@pytest.mark.parametrize(
    "edit",
    [flip_sign, flip_two_signs, negate, swap, swap_rows_of_keys, one_ulp, top_bit],
    ids=lambda e: e.__name__,
)
def test_edits_that_weaker_sums_miss_change_it_under_every_key(edit: Callable[[torch.Tensor], None]) -> None:
    honest = numbers(2 * WORDS_A_ROW)
    edited = honest.clone()
    edit(edited)
    for seed in range(40):
        f = Fingerprinter(random.Random(seed).randbytes(32))
        a, b = f.sums([(honest, None), (edited, None)])
        # Every accumulator by itself: four of them are for 2^-115, and none may be blind.
        assert all(x != y for x, y in zip(a, b, strict=True))


def test_equal_tensors_have_one_fingerprint_wherever_they_lie() -> None:
    t = numbers(1000).view(10, 100)
    assert one(t) == one(t.clone()) == one(t.t().contiguous().t()) == one(torch.nn.Parameter(t))
    assert one(t) != Fingerprinter(bytes(32)).sums([(t, None)])[0]


def test_the_fused_kernel_gives_the_same_bits() -> None:
    block = torch.randint(-(2**31), 2**31, (3, WORDS_A_ROW), generator=torch.Generator().manual_seed(3)).int()
    columns = torch.randint(-(2**63), 2**63 - 1, (4, WORDS_A_ROW), generator=torch.Generator().manual_seed(4))
    try:
        found = fused_row_sums()(block, columns)
    except Exception as e:  # noqa: BLE001  whatever the compiler says when there is none
        pytest.skip(f"torch.compile builds nothing here: {type(e).__name__}")
    assert torch.equal(found, plain_row_sums(block, columns))


def test_the_digest_on_a_device_covers_dtype_shape_and_every_bit_and_hides_the_sum() -> None:
    t = numbers(64)
    digest = fingerprint.device_digests(KEY, [t])[0]
    assert len(digest) == 16
    assert fingerprint.device_digests(KEY, [t.clone()])[0] == digest
    one_bit = t.clone()
    one_ulp(one_bit)
    others = [one_bit, t.view(8, 8), t.view(torch.int32)]
    assert len({digest, *fingerprint.device_digests(KEY, others)}) == 4
    assert digest != fingerprint.tensor_digest(KEY, t)
    assert digest not in shares.packed(one(t))


def test_shares_of_a_state_add_up_over_ranks_and_names() -> None:
    a, b = numbers(100), numbers(50, 1)
    f = Fingerprinter(KEY)
    sums = f.sums([(a[:40], Place((0,), (100,))), (a[40:], Place((40,), (100,))), (b[:7], Place((0,), (50,)))])
    rest = f.sums([(b[7:], Place((7,), (50,)))])[0]
    first = shares.combined(KEY, [("b", sums[2]), ("a", sums[1])])
    second = shares.combined(KEY, [("a", sums[0]), ("b", rest)])
    whole = shares.combined(KEY, zip("ab", f.sums([(a, None), (b, None)]), strict=True))
    assert shares.add([first, second]) == whole
    exchanged = shares.combined(KEY, zip("ba", f.sums([(a, None), (b, None)]), strict=True))
    assert exchanged != whole, "two tensors that take each other's place"


def test_a_masked_share_tells_nothing_without_the_key_of_the_mask() -> None:
    share = (1, 2, 3, M64)
    logged = shares.masked(KEY, "0 1 7", share)
    assert shares.unmasked(KEY, "0 1 7", logged) == share
    assert shares.unmasked(KEY, "0 1 8", logged) != share
    assert all(x != y for x, y in zip(logged, share, strict=True))
    assert shares.unpacked(shares.packed(logged)) == logged
    with pytest.raises(ValueError, match="31 bytes"):
        shares.unpacked(bytes(31))


def shares_of_ranks(
    whole: torch.Tensor, shape: tuple[int, ...], placements: tuple[Any, ...]
) -> list[shares.Sum | None]:
    """What each rank of a mesh of this shape tells of its part of a DTensor; no rank but this process is there."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    found = []
    for rank in range(math.prod(shape)):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=math.prod(shape))
        try:
            mesh = dist.device_mesh.init_device_mesh("cpu", shape)
            local = whole
            for dimension, placement in enumerate(placements):
                if isinstance(placement, Shard):
                    pieces = local.chunk(shape[dimension], placement.dim)
                    at = mesh.get_local_rank(dimension)
                    local = pieces[at] if at < len(pieces) else local.narrow(placement.dim, 0, 0)
            part = DTensor.from_local(
                local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
            )
            found.append(share_of(KEY, [("w", part), ("whole", whole)], rank))
        finally:
            dist.destroy_process_group()
    return found


@pytest.mark.parametrize("shape", [(2,), (3,), (4,), (2, 2)], ids=str)
@pytest.mark.parametrize("dim", [0, 1])
def test_shards_of_any_mesh_add_up_to_the_whole(shape: tuple[int, ...], dim: int) -> None:
    from torch.distributed.tensor import Replicate, Shard

    whole = numbers(7 * 5 * 9).view(7, 5, 9).bfloat16()
    expected = shares.combined(KEY, zip(("w", "whole"), [one(whole)] * 2, strict=True))
    # On a mesh of two dimensions the second holds copies: they count once.
    told = shares_of_ranks(whole, shape, (Shard(dim), Replicate())[: len(shape)])
    assert shares.add(s for s in told if s is not None) == expected
    if len(shape) == 2:
        told = shares_of_ranks(whole, shape, (Shard(0), Shard(1)))
        assert shares.add(s for s in told if s is not None) == expected


def test_nothing_is_told_where_nothing_is_sharded_and_sums_to_come_have_no_place() -> None:
    from torch.distributed.tensor import Partial

    assert share_of(KEY, [("w", numbers(4))], 0) is None
    with pytest.raises(ValueError, match="Partial"):
        shares_of_ranks(numbers(4), (2,), (Partial(),))
