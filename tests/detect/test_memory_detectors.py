"""Patched code and foreign native code: what must fire, and the benign twins that must not."""

from __future__ import annotations

import pytest
from records import feed

from trainwarden.detect.mappings import Mappings
from trainwarden.detect.patched import Patched
from trainwarden.model import CodeDifference, CodeSeen, Deviation, ProcessSeen, Severity


def looked(*differences: CodeDifference, more: int = 0) -> CodeSeen:
    return CodeSeen(
        attempt=0, rank=1, step=7, root="0" * 64, names=9, functions=8, unchecked=1, differences=differences, more=more
    )


def difference(kind: str, **changes: object) -> CodeDifference:
    fields = {
        "slots": ("torch.optim.adam:Adam.step", "torch.optim.adamw:AdamW.step"), "places": 2, "function": "wrapper",
        "file": "/tmp/evil.py", "line": 3, "sealed_file": "/env/torch/optim/adam.py", "sealed_line": 213,
        "at": "instruction 4 of Adam.step", "sealed": "LOAD_FAST self", "live": "LOAD_GLOBAL sleep",
    } | changes  # fmt: skip
    return CodeDifference(kind=kind, **fields)  # type: ignore[arg-type]


def process(*deviations: Deviation) -> ProcessSeen:
    return ProcessSeen(attempt=0, rank=1, pid=42, libraries=9, sealed=5, system=4, deviations=deviations)


def test_code_that_agrees_is_silent() -> None:
    assert feed(Patched(), [looked(), looked()], finish=True) == []


def test_a_patched_function_is_named_with_its_file_and_instruction() -> None:
    (found,) = feed(Patched(), [looked(difference("unsealed"))])
    for part in ("torch.optim.adam.Adam.step and 1 more", "wrapper (/tmp/evil.py:3)", "/env/torch/optim/adam.py:213",
                 "instruction 4 of Adam.step: LOAD_FAST self → LOAD_GLOBAL sleep"):  # fmt: skip
        assert part in found.seen
    assert (found.severity, found.ranks, found.step, found.evidence) == (Severity.HIGH, (1,), 7, (0,))


@pytest.mark.parametrize(
    ("kind", "changes", "severity"),
    [
        ("altered", {}, Severity.HIGH),
        ("generated", {}, Severity.HIGH),
        ("defaults", {}, Severity.HIGH),
        ("globals", {}, Severity.HIGH),
        ("replaced", {"function": ""}, Severity.HIGH),
        ("unsealed", {"sealed_file": ""}, Severity.MEDIUM),
        ("unsealed", {"sealed_file": "", "slots": ("optimizer0._optimizer_step_post_hooks[0]",)}, Severity.HIGH),
        ("moved", {}, Severity.LOW),
        ("of another version", {}, Severity.HIGH),
    ],
)
def test_each_kind_of_patch_has_its_severity(kind: str, changes: dict[str, object], severity: Severity) -> None:
    (found,) = feed(Patched(), [looked(difference(kind, **changes))])
    assert found.severity == severity
    assert found.benign


def test_differences_beyond_those_listed_are_told() -> None:
    (found,) = feed(Patched(), [looked(more=40)])
    assert "40 further functions" in found.seen


def test_a_process_as_sealed_is_silent() -> None:
    assert feed(Mappings(), [process(), process()], finish=True) == []


@pytest.mark.parametrize(
    ("deviation", "severity", "part"),
    [
        (Deviation(kind="library", name="/tmp/x.so", found="ab" * 32), Severity.HIGH, "/tmp/x.so (abababababab)"),
        (Deviation(kind="interpreter", name="/tmp/python", expected="/env/python"), Severity.HIGH, "/env/python"),
        (Deviation(kind="deleted", name="/env/x.so"), Severity.MEDIUM, "gone or was replaced"),
        (Deviation(kind="system", name="/lib/x.so"), Severity.MEDIUM, "changed after the seal"),
        (Deviation(kind="environment", name="LD_PRELOAD", found="/tmp/x.so"), Severity.HIGH, "LD_PRELOAD='/tmp/x.so'"),
        (Deviation(kind="environment", name="PYTHONPATH", found="/tmp"), Severity.MEDIUM, "PYTHONPATH='/tmp'"),
        (Deviation(kind="environment", name="PYTHONUNBUFFERED", found="1"), Severity.LOW, "PYTHONUNBUFFERED"),
    ],
)
def test_each_deviation_is_told(deviation: Deviation, severity: Severity, part: str) -> None:
    (found,) = feed(Mappings(), [process(deviation)])
    assert found.severity == severity
    assert part in found.seen


def test_libraries_that_a_compiler_made_are_one_note() -> None:
    made = [Deviation(kind="generated", name=f"/tmp/torchinductor_x/{i}.so") for i in range(3)]
    (found,) = feed(Mappings(), [process(*made)])
    assert found.severity == Severity.INFO
    assert "3 libraries" in found.seen
