"""One digest per value: whatever way a tensor lies in memory, and nothing but its value, dtype and shape, counts."""

from __future__ import annotations

import pytest
import torch

from trainwarden.model import DIGEST_BYTES
from trainwarden.record import fingerprint
from trainwarden.record.fingerprint import stage_root, tensor_digest

KEY = bytes(range(32))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return tensor_digest(KEY, a) == tensor_digest(KEY, b)


@pytest.mark.parametrize(
    "t",
    [
        torch.arange(12, dtype=torch.bfloat16).reshape(3, 4),
        torch.arange(12).reshape(3, 4) % 2 == 0,
        torch.randn(3, 4, dtype=torch.complex64),
        torch.randn(7, 2, requires_grad=True),
        torch.nn.Parameter(torch.randn(4)),
        torch.tensor(3.0),
        torch.empty(0, 5),
    ],
    ids=["bfloat16", "bool", "complex", "with-gradient", "parameter", "scalar", "empty"],
)
def test_a_copy_and_a_strided_view_have_the_digest_of_the_value(t: torch.Tensor) -> None:
    assert same(t, t.detach().clone())
    wide = torch.stack([t.detach(), t.detach()], dim=-1)[..., 0]
    assert same(t, wide)
    assert len(tensor_digest(KEY, t)) == DIGEST_BYTES


def test_lazily_negated_and_conjugated_views_count_as_their_value() -> None:
    z = torch.randn(1, dtype=torch.complex64)
    lazy = z.conj().imag
    assert lazy.is_neg()
    assert same(lazy, -z.imag)
    assert same(z.conj(), z.conj().resolve_conj())


def test_sparse_gradients_count_as_their_dense_value() -> None:
    dense = torch.zeros(5, 3)
    dense[2] = 1.0
    assert same(dense.to_sparse(), dense)


def test_dtype_shape_and_every_bit_count() -> None:
    zero = torch.zeros(4)
    others = [
        torch.zeros(4, dtype=torch.int32), torch.zeros(2, 2), torch.zeros(5), -zero, torch.tensor([0, 0, 0, 1e-45]),
    ]  # fmt: skip
    assert len({tensor_digest(KEY, t) for t in [zero, *others]}) == 6


def test_a_tensor_that_changes_in_place_or_takes_the_place_of_another_has_its_own_digest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fingerprint, "_MAX_KEPT", 2)  # the tables are emptied and filled again on the way
    memory = torch.zeros(8)
    first = tensor_digest(KEY, memory)
    memory[5] = 2.0
    assert tensor_digest(KEY, memory) != first
    assert tensor_digest(KEY, memory[:4]) == tensor_digest(KEY, torch.zeros(4))
    assert tensor_digest(KEY, memory.view(torch.int32)) != tensor_digest(KEY, memory)
    memory[5] = 0.0
    assert tensor_digest(KEY, memory) == first


def test_a_root_covers_names_digests_and_their_order() -> None:
    a, b = b"a" * 16, b"b" * 16
    roots = [
        stage_root(KEY, names, digests)
        for names, digests in [(("x", "y"), (a, b)), (("y", "x"), (a, b)), (("x", "y"), (b, a)), (("xy", ""), (a, b))]
    ]
    assert len(set(roots)) == 4
    assert stage_root(KEY, ("x", "y"), (a, b)) == roots[0]
