"""What a part is, by its bytes, and the decision of that kind's reader; what looks like two things is refused.

Each kind's reader is imported when the first part of its kind is met: much of what a scan takes is its start.
"""

from __future__ import annotations

from typing import Final

from trainwarden.gate.results import Clean, Decision, Objection, Refused, refused
from trainwarden.gate.scan.place import Budget, Place
from trainwarden.gate.scan.tar import is_tar, read_tar
from trainwarden.gate.scan.window import Window

_HEAD: Final = 512
_TAIL: Final = 22 + 65_535


def judge(window: Window, place: Place) -> Decision:
    """The decision on one part."""
    if window.size == 0:
        return Clean(kind="empty")
    head = window.read(0, _HEAD)
    if head.startswith(b"PK\3\4") or (head.startswith(b"PK\5\6") and window.size == 22):
        from trainwarden.gate.scan.zips import read_zip

        return read_zip(window, place)
    if is_tar(head):
        return _only(read_tar(window, place), window, place)
    if _zip_inside(window):
        return refused("zip", place.path, "an archive behind other bytes: readers begin at either end", field="zip")
    if _is_safetensors(head, window.size):
        from trainwarden.gate.scan.arrays import read_safetensors

        return _only(read_safetensors(window, place), window, place)
    if head[:1] == b"\x80" and head[1:2] <= b"\5":
        from trainwarden.gate.scan.pickles.streams import read_file

        return read_file(window, place)
    return _only(_others(head, window, place), window, place)


def _others(head: bytes, window: Window, place: Place) -> Decision:
    if head.startswith(b"\x93NUMPY"):
        from trainwarden.gate.scan.arrays import read_npy

        return read_npy(window, place)
    if head.startswith(b"GGUF"):
        from trainwarden.gate.scan.gguf import read_gguf

        return read_gguf(window, place)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        from trainwarden.gate.scan.graphs import read_hdf5

        return read_hdf5(window, place)
    from trainwarden.gate.scan.graphs import looks_like_onnx, read_onnx
    from trainwarden.gate.scan.packed import packing, read_packed
    from trainwarden.gate.scan.pictures import JPEG, PNG, read_jpeg, read_png
    from trainwarden.gate.scan.sentencepiece import looks_like_sentencepiece, read_sentencepiece
    from trainwarden.gate.scan.texts import is_text, read_text

    if packing(head):
        return read_packed(window, place)
    if looks_like_onnx(window):
        return read_onnx(window, place)
    if head.startswith(PNG):
        return read_png(window, place)
    if head.startswith(JPEG):
        return read_jpeg(window, place)
    if looks_like_sentencepiece(window):
        return read_sentencepiece(window, place)
    if is_text(window):
        return read_text(window, place)
    return _old_pickle(window, place)


def _old_pickle(window: Window, place: Place) -> Decision:
    """A pickle of protocol 0 or 1 has no mark of its own; anything else is not known."""
    from trainwarden.gate.scan.pickles.streams import Followed, read_file

    followed = Followed(window, 0, place)
    if followed.broken and not followed.objections:
        return place.undecided("unknown", "it is of no kind that a scan knows")
    return read_file(window, place)


def _only(decision: Decision, window: Window, place: Place) -> Decision:
    """The decision, unless a pickle loader would find names in these bytes too."""
    if isinstance(decision, Refused):
        return decision
    from trainwarden.gate.scan.pickles.streams import Followed, read_file

    followed = Followed(window, 0, place._replace(budget=Budget()))
    if not followed.named and followed.broken:
        return decision
    if followed.objections:
        return Refused(kind="pickle", objections=tuple(followed.objections))
    if decision.kind in ("text", "json", "unknown", "pickle"):
        return (
            followed.decision("pickle", place)
            if followed.broken or followed.end == window.size
            else read_file(window, place)
        )
    why = f"it is a pickle as well as {decision.kind}"
    return Refused(kind=decision.kind, objections=(Objection(part=place.path, offset=0, opcode="", name="", why=why),))


def _is_safetensors(head: bytes, size: int) -> bool:
    return head[6:9] == b"\0\0{" and 8 < int.from_bytes(head[:8], "little") + 8 <= size


def _zip_inside(window: Window) -> bool:
    tail = window.read(max(0, window.size - _TAIL), _TAIL)
    at = tail.rfind(b"PK\5\6")
    while at >= 0:
        if len(tail) - at >= 22 and int.from_bytes(tail[at + 20 : at + 22], "little") == len(tail) - at - 22:
            return True
        at = tail.rfind(b"PK\5\6", 0, at)
    return False
