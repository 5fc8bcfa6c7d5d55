"""A checkpoint's family: everything that stands on what is tainted is shown, what is served first."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from xml.etree import ElementTree

sys.path.append(str(Path(__file__).parent))

from rich.console import Console
from yard import KEEPER, Yard, diverged, matched, yard

from trainwarden import model as m
from trainwarden.config import GateConfig
from trainwarden.gate.clear import tracer
from trainwarden.gate.decision import Cleared
from trainwarden.gate.family import Family, family_of
from trainwarden.gate.ledger import read_gate
from trainwarden.gate.manifest import manifest_digest, manifest_of
from trainwarden.gate.promote import promote
from trainwarden.report.family import family_svg, family_tree, folded

__all__ = ["yard"]


def family(yard: Yard, path: Path) -> Family:
    tracing = tracer(yard.store, GateConfig(), KEEPER.public, remake=False)
    manifest = manifest_of(path)
    return family_of(yard.store, tracing, manifest_digest(manifest), manifest, read_gate(yard.store))


def serve(yard: Yard, name: str, *paths: Path) -> None:
    for path in paths:
        assert isinstance(yard.clear(path), Cleared)
        promote(yard.store, name, path, GateConfig(), KEEPER)


def text(family: Family) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(family_tree(family))
    return console.export_text()


def grown(yard: Yard) -> tuple[str, str]:
    """A base, what was tuned from it, and an average of that with another run; half of that is served, and the base."""
    yard.enrol()
    base = yard.run("base", steps=16)
    tuned = yard.run("tuned", start=yard.checkpoint(12, "base") / "model.safetensors")
    yard.run("other")
    yard.derive(yard.out / "avg", m.How.AVERAGE, yard.checkpoint(8, "tuned"), yard.checkpoint(8, "other"))
    yard.derive(yard.out / "half", m.How.CAST, yard.out / "avg", dtype="bfloat16")
    serve(yard, "chat", yard.checkpoint(16, "base"), yard.out / "half")
    serve(yard, "web", yard.checkpoint(8, "other"))
    return base, tuned


def test_what_stands_on_a_tainted_checkpoint_is_shown_served_ones_first(yard: Yard) -> None:
    base, tuned = grown(yard)
    found = family(yard, yard.out / "half")
    assert (found.tainted, found.descendants) == ((), ())
    yard.says(base, m.Gap(attempt=0, rank=0, step=14, reason="none"))  # after what half stands on
    assert family(yard, yard.out / "half").tainted == ()

    taint(yard, base, first=8)
    found = family(yard, yard.out / "half")
    assert found.tainted == (f"{base}:0:12",)
    told = [(d.names, d.earlier, d.node.label) for d in found.descendants]
    assert told[:2] == [(("chat",), (), "cast of 1, by ada"), ((), ("chat",), f"run {base}, step 16")]
    assert {label for _, _, label in told[2:]} == {
        "average of 2, by ada",
        f"run {tuned}, step 4",
        f"run {tuned}, step 8",
    }
    assert "diverged at attempt 0, step 9" in text(found)
    assert family(yard, yard.checkpoint(8, "other")).tainted == ()


def taint(yard: Yard, run: str, first: int) -> None:
    """A replay of these four steps diverges; the verdicts that matched them are of another attempt's log no more."""
    from contextlib import closing

    from trainwarden.casefile import read_entries
    from trainwarden.log.journal import LogWriter

    folder = yard.store.run(run)
    kept = [
        e
        for e in read_entries(folder)[0]
        if not (isinstance(e, m.Matched) and e.segment.first == first) and not isinstance(e, m.Gap)
    ]
    for path in folder.log.iterdir():
        path.unlink()
    with closing(LogWriter.create(folder.log, f"trainwarden/{run}", KEEPER)) as log:
        log.append([m.canonical(e) for e in (*kept, diverged(first, first + 3, at=first + 1))])


def test_the_drawing_has_every_box_inside_names_what_is_served_and_escapes_what_others_wrote(yard: Yard) -> None:
    base, _ = grown(yard)
    taint(yard, base, first=8)
    found = family(yard, yard.out / "half")
    drawing = ElementTree.fromstring(str(family_svg(found)))
    _, _, width, height = (float(n) for n in drawing.attrib["viewBox"].split())
    boxes = drawing.findall("{*}rect")
    assert len(boxes) == len(folded(found))
    places = {(float(b.attrib["x"]), float(b.attrib["y"])) for b in boxes}
    assert len(places) == len(boxes)
    assert all(0 < x < x + 200 < width and 0 < y < y + 62 < height for x, y in places)
    words = "".join(drawing.itertext())
    assert "served as chat" in words
    assert "was served as chat" in words
    evil = found.nodes[0].__class__(
        id="x", kind="unknown", label="<script>alert(1)</script>", standing=m.Standing.UNDECIDED, reason="</title>&"
    )
    alone = Family(digest="d", root="x", nodes=(evil,), tainted=(), descendants=())
    assert "<script" not in str(family_svg(alone))
    ElementTree.fromstring(str(family_svg(alone)))


def test_checkpoints_in_a_row_that_stand_alike_are_one_line_and_none_is_lost(yard: Yard) -> None:
    yard.run("long", steps=40)
    found = family(yard, yard.checkpoint(40, "long"))
    assert len(found.nodes) == 11
    drawn = folded(found)
    assert sum(1 + d.folded for d in drawn.values()) == 11
    assert len(drawn) < 5
    assert "8 before it" in text(found) or "9 before it" in text(found)


def test_a_checkpoint_that_nobody_knows_has_no_family(yard: Yard) -> None:
    yard.out.mkdir()
    (yard.out / "x.json").write_text("{}")
    found = family(yard, yard.out / "x.json")
    assert [n.kind for n in found.nodes] == ["unknown"]
    assert "is no part of any run" in text(found)


def test_a_diverged_segment_that_matched_once_is_a_conflict_and_no_taint(yard: Yard) -> None:
    run = yard.run()
    yard.says(run, diverged(0, 3, at=1), matched(0, 3))
    found = family(yard, yard.checkpoint())
    assert found.tainted == ()
    assert "conflict" in text(found)
