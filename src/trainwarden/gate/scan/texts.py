"""Text: configurations that name remote code, Keras architectures, templates, source code, and plain words."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from trainwarden.gate.results import Clean, Decision, Objection, Refused, Undecided, joined
from trainwarden.gate.scan.place import Place
from trainwarden.gate.scan.templates import judge_template
from trainwarden.gate.scan.window import PIECE, Window

MOST_PARSED: Final = 4 << 20
_REMOTE: Final = {
    "auto_map": "classes are imported from Python files beside it or on a hub",
    "trust_remote_code": "it asks its loader to run code from a hub",
    "custom_pipelines": "pipelines are imported from Python files beside it",
    "_target_": "Hydra makes whatever it names",
    "py/object": "jsonpickle makes whatever it names",
    "py/reduce": "jsonpickle calls whatever it names",
    "py/type": "jsonpickle imports whatever it names",
    "__reduce__": "a decoder may call whatever it names",
}
_WORDS: Final = re.compile(
    rb"auto_map|trust_remote_code|custom_pipelines|_target_|py/(?:object|reduce|type)|chat_template|class_name|\\u00[2-7]"
)
_CODE: Final = re.compile(
    rb"^\s*(?:import\s+\w|from\s+[\w.]+\s+import\s|def\s+\w+\s*\(|class\s+\w+\s*[(:]|async\s+def\s|exec\s*\(|#!)", re.M
)
_YAML_TAG: Final = re.compile(rb"!!python/|!<tag:yaml.org,2002:python")
_KERAS: Final = frozenset(
    {
        *("Functional", "Sequential", "Model", "InputLayer", "Dense", "Activation", "Dropout", "Flatten"),
        *("Reshape", "Permute", "RepeatVector", "Masking", "Embedding", "Conv1D", "Conv2D", "Conv3D"),
        *("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose", "SeparableConv1D", "SeparableConv2D"),
        *("DepthwiseConv1D", "DepthwiseConv2D", "MaxPooling1D", "MaxPooling2D", "MaxPooling3D"),
        *("AveragePooling1D", "AveragePooling2D", "AveragePooling3D", "GlobalMaxPooling1D"),
        *("GlobalMaxPooling2D", "GlobalMaxPooling3D", "GlobalAveragePooling1D", "GlobalAveragePooling2D"),
        *("GlobalAveragePooling3D", "LSTM", "GRU", "SimpleRNN", "LSTMCell", "GRUCell", "SimpleRNNCell", "RNN"),
        *("Bidirectional", "TimeDistributed", "ConvLSTM1D", "ConvLSTM2D", "BatchNormalization"),
        *("LayerNormalization", "GroupNormalization", "UnitNormalization", "RMSNormalization", "Add"),
        *("Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate", "Dot", "Attention"),
        *("AdditiveAttention", "MultiHeadAttention", "GroupedQueryAttention", "SpatialDropout1D"),
        *("SpatialDropout2D", "SpatialDropout3D", "GaussianDropout", "GaussianNoise", "AlphaDropout"),
        *("ActivityRegularization", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax", "UpSampling1D"),
        *("UpSampling2D", "UpSampling3D", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "Cropping1D"),
        *("Cropping2D", "Cropping3D", "Rescaling", "Resizing", "CenterCrop", "Normalization", "Identity"),
        *("EinsumDense", "GlorotUniform", "GlorotNormal", "HeUniform", "HeNormal", "LecunUniform"),
        *("LecunNormal", "Zeros", "Ones", "Constant", "RandomNormal", "RandomUniform", "TruncatedNormal"),
        *("VarianceScaling", "Orthogonal", "IdentityInitializer", "L1", "L2", "L1L2", "OrthogonalRegularizer"),
        *("MaxNorm", "NonNeg", "UnitNorm", "MinMaxNorm", "DTypePolicy", "Policy", "Adam", "AdamW", "SGD"),
        *("RMSprop", "Adagrad", "Adadelta", "Adamax", "Nadam", "Ftrl", "Lion", "Adafactor"),
        *("LossScaleOptimizer", "BinaryCrossentropy", "CategoricalCrossentropy"),
        *("SparseCategoricalCrossentropy", "MeanSquaredError", "MeanAbsoluteError", "Huber", "Accuracy"),
        *("BinaryAccuracy", "CategoricalAccuracy", "SparseCategoricalAccuracy", "Precision", "Recall", "AUC"),
        *("Mean", "ExponentialDecay", "CosineDecay", "PiecewiseConstantDecay", "PolynomialDecay"),
        *("__tensor__", "__keras_tensor__", "__numpy__", "TensorShape"),
    }
)


def read_text(window: Window, place: Place) -> Decision:
    """The decision on a file of text."""
    head = window.read(0, PIECE)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        judged = _json(window, place)
        if judged is not None:
            return judged
    name = place.name
    if _CODE.search(head) and not name.endswith((".md", ".txt", ".rst")):
        return _refuse(place, "source code", name, "source code beside a checkpoint: loaders that trust it run it")
    if _YAML_TAG.search(head):
        return _refuse(place, "tag", name, "a YAML tag that makes whatever it names")
    if b"{%" in head and not name.endswith((".md", ".txt", ".rst")):
        if window.size > len(head):
            return place.undecided("text", "a template that is too long")
        return joined("template", [judge_template(head.decode("utf-8", "replace"), place, name)])
    return Clean(kind="text")


def is_text(window: Window) -> bool:
    """Is every piece of it UTF-8 text without control characters?"""
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")()
    at = 0
    while piece := window.read(at, PIECE):
        at += len(piece)
        try:
            decoder.decode(piece, final=at >= window.size)
        except UnicodeDecodeError:
            return False
        if _CONTROL.search(piece):
            return False
    return True


_CONTROL: Final = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def _refuse(place: Place, field: str, name: str, why: str) -> Refused:
    return Refused(kind="text", objections=(Objection(part=place.path, offset=0, opcode=field, name=name, why=why),))


def _json(window: Window, place: Place) -> Decision | None:
    if window.size > MOST_PARSED:
        return _long_json(window, place)
    try:
        tree = json.loads(window.read(0, window.size).decode("utf-8-sig"), object_pairs_hook=_pairs)
    except RecursionError:
        return place.undecided("json", "it is nested too deeply")
    except ValueError:
        return None
    return judge_json(tree, place)


def _long_json(window: Window, place: Place) -> Decision:
    at = 0
    while piece := window.read(at, PIECE):
        found = _WORDS.search(piece)
        if found:
            return Undecided(kind="json", why=f"{place.path}: it is too long to parse and holds {found[0].decode()!r}")
        at += PIECE - 64 if len(piece) == PIECE else len(piece)
    return Clean(kind="json")


class _Twice(dict[str, Any]):
    """An object with a key twice."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _Twice(pairs)


def judge_json(tree: object, place: Place) -> Decision:
    """The decision on parsed JSON: what it names that a loader would import, make or run."""
    parts: list[Decision] = [Clean(kind="json")]
    pending: list[object] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending.extend(node)
        elif isinstance(node, dict):
            pending.extend(node.values())
            parts.extend(_object(node, place))
    return joined("json", parts)


def _object(node: dict[str, Any], place: Place) -> list[Decision]:
    parts: list[Decision] = []
    if isinstance(node, _Twice):
        parts.append(_refuse(place, "key", "", "a key twice: readers take one or the other"))
    for key in node.keys() & _REMOTE.keys():
        if node[key]:
            parts.append(_refuse(place, "key", key, _REMOTE[key]))
    parts.extend(_templates(node, place))
    name = node.get("class_name")
    if isinstance(name, str) and ("config" in node or "module" in node) and name not in _KERAS:
        why = (
            "Keras runs it: code in the file"
            if "lambda" in name.lower()
            else "no built-in layer of Keras that only computes"
        )
        parts.append(_refuse(place, "class_name", name[:80], why))
    module = node.get("module")
    if (
        isinstance(name, str)
        and isinstance(module, str)
        and not re.fullmatch(r"(keras|tensorflow\.keras|builtins)(\.\w+)*", module)
    ):
        parts.append(_refuse(place, "module", module[:80], "Keras imports it"))
    registered = node.get("registered_name")
    if isinstance(name, str) and isinstance(registered, str) and ">" in registered:
        parts.append(_refuse(place, "registered_name", registered[:80], "a layer of somebody's own"))
    return parts


def _templates(node: dict[str, Any], place: Place) -> list[Decision]:
    given = node.get("chat_template")
    texts = [given] if isinstance(given, str) else []
    if isinstance(given, list):
        texts = [t["template"] for t in given if isinstance(t, dict) and isinstance(t.get("template"), str)]
    if isinstance(given, dict):
        texts = [t for t in given.values() if isinstance(t, str)]
    return [judge_template(text, place, "chat_template") for text in texts]
