"""The allow-list: every name that a checkpoint legitimately needs, and the only way in which it is needed.

A name is here only if looking it up and using it as its rule says runs no code that the file chooses, whatever the
arguments that the rule lets pass. docs/adr/0017 says how a name gets in.
"""

from __future__ import annotations

from typing import Final

from trainwarden.gate.scan.pickles import numpy_rules as npr
from trainwarden.gate.scan.pickles import torch_rules as tr
from trainwarden.gate.scan.pickles.persistent import ITEM_BYTES
from trainwarden.gate.scan.pickles.plain_rules import (
    INERT,
    MAPPING,
    NAMED,
    bytes_of,
    checked,
    numbers,
    of_pairs,
    one_list,
    plain,
    reconstructed,
    texts,
)
from trainwarden.gate.scan.pickles.values import Rule

_DTYPES: Final = (
    *("float64", "float32", "float16", "bfloat16", "complex32", "complex64", "complex128", "int64", "int32", "int16"),
    *("int8", "uint8", "uint16", "uint32", "uint64", "bool", "qint8", "quint8", "qint32", "quint4x2", "quint2x4"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
)
_TORCH_CONSTANTS: Final = (
    *("strided", "sparse_coo", "sparse_csr", "per_tensor_affine", "per_tensor_symmetric", "per_channel_affine"),
    *("per_channel_symmetric", "per_channel_affine_float_qparams", "contiguous_format", "preserve_format"),
)
_STORAGES: Final = tuple(f"{kind}Storage" for kind in ITEM_BYTES if kind != "Untyped")
_REBUILD: Final = {
    "_rebuild_tensor": tr.tensor,
    "_rebuild_tensor_v2": tr.tensor,
    "_rebuild_tensor_v3": tr.tensor,
    "_rebuild_parameter": tr.parameter,
    "_rebuild_parameter_with_state": tr.parameter,
    "_rebuild_sparse_tensor": tr.sparse,
    "_rebuild_qtensor": tr.tensor,
    "_rebuild_meta_tensor_no_storage": tr.meta,
    "_rebuild_nested_tensor": tr.nested,
    "_rebuild_device_tensor_from_numpy": tr.from_numpy,
}
ENUMS: Final = {
    "transformers.trainer_utils": (
        *("IntervalStrategy", "SaveStrategy", "SchedulerType", "HubStrategy", "EvaluationStrategy", "FSDPOption"),
    ),
    "transformers.training_args": ("OptimizerNames",),
    "accelerate.utils.dataclasses": ("DistributedType", "PrecisionType"),
    "torch.distributed.checkpoint.metadata": ("_MEM_FORMAT_ENCODING",),
}
RECORDS: Final = {
    "argparse": ("Namespace",),
    "transformers.training_args": ("TrainingArguments",),
    "transformers.training_args_seq2seq": ("Seq2SeqTrainingArguments",),
    "transformers.trainer_pt_utils": ("AcceleratorConfig",),
    "accelerate.state": ("PartialState",),  # as training_args.bin holds it: made, and not initialised
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "MetadataIndex"),
        "StorageMeta",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
}
PATHS: Final = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath")
ATTRIBUTE_DICTS: Final = (
    *("lightning_fabric.utilities.data", "lightning.fabric.utilities.data", "pytorch_lightning.utilities.parsing"),
    "lightning.pytorch.utilities.parsing",
)
PROPERTIES: Final = ("torch.distributed.checkpoint.metadata", "TensorProperties")

ALLOWED: Final[dict[tuple[str, str], Rule]] = {
    ("collections", "OrderedDict"): Rule(of_pairs, plain, INERT.build, grows=True),
    ("collections", "defaultdict"): Rule(checked("default"), checked("default"), None, grows=True),
    ("collections", "Counter"): Rule(checked("counts"), plain, None, grows=True),
    ("collections", "deque"): Rule(checked("queue"), checked("queue"), None, grows=True),
    ("builtins", "set"): Rule(one_list),
    ("builtins", "frozenset"): Rule(one_list),
    ("builtins", "complex"): Rule(numbers(2, 2)),
    ("builtins", "slice"): Rule(numbers(3, 3)),
    ("builtins", "range"): Rule(numbers(1, 3)),
    ("builtins", "bytearray"): Rule(bytes_of),
    ("builtins", "bytes"): Rule(bytes_of),
    **{("builtins", name): NAMED for name in ("object", "list", "dict", "int", "float", "str", "bool", "tuple")},
    ("_codecs", "encode"): Rule(checked("encoded")),
    ("copyreg", "_reconstructor"): Rule(reconstructed),
    ("types", "SimpleNamespace"): Rule(plain, plain, INERT.build),
    ("datetime", "datetime"): Rule(checked("moment")),
    ("datetime", "date"): Rule(checked("moment")),
    ("datetime", "time"): Rule(checked("moment")),
    ("datetime", "timedelta"): Rule(numbers(0, 3)),
    ("datetime", "timezone"): Rule(checked("moment")),
    ("decimal", "Decimal"): Rule(texts(1, 1)),
    ("fractions", "Fraction"): Rule(checked("fraction")),
    **{(m, n): Rule(texts(0, 64)) for m in ("pathlib", "pathlib._local") for n in PATHS},
    **{(module, n): Rule(checked("choice")) for module, names in ENUMS.items() for n in names},
    **{(module, n): INERT for module, names in RECORDS.items() for n in names},
    **{(module, "AttributeDict"): MAPPING for module in ATTRIBUTE_DICTS},
    PROPERTIES: Rule(plain, plain, tr.properties),
    **{("torch", n): NAMED for n in (*_DTYPES, *_TORCH_CONSTANTS, *_STORAGES)},
    **{("torch.cuda", n): NAMED for n in _STORAGES},
    ("torch.storage", "UntypedStorage"): NAMED,
    ("torch.storage", "_load_from_bytes"): Rule(tr.from_bytes),
    **{("torch._utils", n): Rule(check) for n, check in _REBUILD.items()},
    ("torch._tensor", "_rebuild_from_type_v2"): Rule(tr.from_type),
    ("torch.nn.parameter", "Parameter"): NAMED,
    ("torch.nn.parameter", "Buffer"): NAMED,
    ("torch", "Tensor"): NAMED,
    ("torch", "Size"): Rule(tr.size, tr.size),
    ("torch", "device"): Rule(tr.device),
    ("torch.serialization", "_get_layout"): Rule(texts(1, 1)),
    **{
        (f"numpy.{core}.multiarray", name): rule
        for core in ("core", "_core")
        for name, rule in (("_reconstruct", npr.ARRAY), ("scalar", Rule(npr.scalar)))
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): Rule(npr.from_buffer) for core in ("core", "_core")},
    ("numpy", "ndarray"): NAMED,
    ("numpy", "dtype"): npr.DTYPE,
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): Rule(plain, plain, npr.wrapper),
}

# What CPython's unpickler renames for protocols below 3 (Lib/_compat_pickle.py), where the allow-list needs it.
PYTHON_2: Final = {
    ("__builtin__", n): ("builtins", n)
    for n in (
        *("object", "list", "dict", "int", "float", "bool", "tuple", "complex", "bytearray", "bytes"),
        *("set", "frozenset", "slice"),
    )
} | {
    ("__builtin__", "str"): ("builtins", "str"),
    ("__builtin__", "unicode"): ("builtins", "str"),
    ("__builtin__", "long"): ("builtins", "int"),
    ("__builtin__", "xrange"): ("builtins", "range"),
    ("copy_reg", "_reconstructor"): ("copyreg", "_reconstructor"),
}

_RUNS: Final = frozenset(
    {
        *(
            "os",
            "posix",
            "nt",
            "subprocess",
            "builtins",
            "__builtin__",
            "sys",
            "importlib",
            "runpy",
            "pty",
            "shutil",
            "socket",
        ),
        *(
            "pickle",
            "_pickle",
            "marshal",
            "types",
            "code",
            "ctypes",
            "operator",
            "functools",
            "webbrowser",
            "multiprocessing",
        ),
    }
)


def why_not(module: str, name: str) -> str:
    """Why a name that is not in the list is objected to."""
    if "." in name:
        return "a name with dots reaches into what a module holds"
    if module.partition(".")[0] in _RUNS:
        return "it can run code, or reach what does; no checkpoint needs it"
    return "it is not among the names that a checkpoint needs: looking it up imports its module, which runs"
