"""Tensors out of verified memory, without a copy. torch is imported when the first is asked for.

The header is held to what a safetensors file may be (https://github.com/huggingface/safetensors, "Format"): a name
once, sizes that follow from shapes, tensors that fill the rest without gaps. A cleared file is such a one already;
what is not is refused all the same.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

from trainwarden.errors import CheckpointRefused

if TYPE_CHECKING:
    import torch

MOST_HEADER: Final = 100 << 20
_KINDS: Final = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"},
    **{"I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool"},
    **{"C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}


def tensors(memory: memoryview, name: str) -> dict[str, torch.Tensor]:
    """The tensors of the safetensors file `name` that `memory` holds; they are views of it, and keep it alive.

    Raises:
        CheckpointRefused: it is not a safetensors file, or has a dtype that torch does not.
    """
    import torch

    try:
        header, begin = read_header(memory)
        found, at = {}, begin
        spans = sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"]))
        for key, told in spans:
            dtype, shape = getattr(torch, _KINDS[told["dtype"]]), [int(n) for n in told["shape"]]
            start, end = (begin + int(n) for n in told["data_offsets"])
            size = math.prod(shape) * dtype.itemsize
            if start != at or end - start != size or min(shape, default=0) < 0 or end > len(memory):
                raise ValueError(f"the place of {key!r} does not follow from its shape")
            at = end
            found[key] = _view(memory[start:end], dtype, shape)
        if at != len(memory):
            raise ValueError("bytes that belong to no tensor")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise CheckpointRefused(
            f"{name} is not a safetensors file that can be served: {e}",
            hint="trainwarden convert makes one of a checkpoint that is clean",
        ) from e
    return found


def read_header(memory: memoryview) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file without its metadata, and where the tensors begin.

    Raises:
        ValueError: it has none.
    """
    size = int.from_bytes(memory[:8], "little")
    if len(memory) < 8 or size > min(MOST_HEADER, len(memory) - 8):
        raise ValueError("its header does not fit into it")
    header = json.loads(bytes(memory[8 : 8 + size]).decode("utf-8"), object_pairs_hook=_once)
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    header.pop("__metadata__", None)
    return header, 8 + size


def _view(memory: memoryview, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    import torch

    if not len(memory):
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    if flat.data_ptr() % dtype.itemsize:
        flat = flat.clone()  # old writers did not align; such a view cannot be taken
    return flat.view(dtype).view(shape)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name twice")
    return made
