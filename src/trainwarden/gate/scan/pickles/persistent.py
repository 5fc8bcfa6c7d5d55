"""torch's persistent ids: a storage by kind, key, place and size (torch/serialization.py, `persistent_load`)."""

from __future__ import annotations

import re
from typing import Final

from trainwarden.gate.scan.pickles.values import Name, Objectionable, Storage, Value

ITEM_BYTES: Final = {
    **{"Double": 8, "Float": 4, "Half": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1},
    **{"BFloat16": 2, "ComplexDouble": 16, "ComplexFloat": 8, "Untyped": 1, "QInt8": 1, "QUInt8": 1, "QInt32": 4},
    **{"QUInt4x2": 1, "QUInt2x4": 1},
}
_KEY: Final = r"[A-Za-z0-9_.-]{1,64}"
_PLACE: Final = r"(cpu|meta|(cuda|mps|xpu|hpu|xla|npu|ipu|privateuseone)(:\d{1,4})?)"


def persistent(given: Value) -> Storage:
    """The storage that this persistent id names.

    Raises:
        Objectionable: it is no storage's.
    """
    if not isinstance(given, tuple) or len(given) not in (5, 6) or given[0] != "storage":
        raise Objectionable("it is no tensor's storage")
    _, kind, key, place, numel, *view = given
    item = ITEM_BYTES.get(kind.name.rpartition(".")[2].removesuffix("Storage")) if isinstance(kind, Name) else None
    if item is None:
        raise Objectionable("its kind is no storage class of torch")
    if not isinstance(key, str) or not re.fullmatch(_KEY, key) or ".." in key:
        raise Objectionable("its key could lead out of the archive")
    if not isinstance(place, str) or not re.fullmatch(_PLACE, place):
        raise Objectionable("its place is no device")
    if type(numel) is not int or not 0 <= numel < 1 << 48:
        raise Objectionable("its size is no number of items")
    if view and view[0] is not None:
        raise Objectionable("a view of a storage, which torch no longer writes")
    return Storage(key, numel, item)
