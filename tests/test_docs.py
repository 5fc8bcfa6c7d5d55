"""The docs say what the code does: verbs, options, settings, nouns, detectors, figures, links."""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from benchmarks import docs
from trainwarden import config, model, wire
from trainwarden.cli import VERBS
from trainwarden.detect import all_detectors

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "workloads").rglob("*.md")])
LATER = {"docs/report.png"}  # a picture that is made from a real run
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_generated_blocks_are_up_to_date() -> None:
    stale = [str(p.relative_to(ROOT)) for p, text in docs.generated(ROOT).items() if p.read_text("utf-8") != text]
    assert stale == [], "make docs"


def test_readme_lists_exactly_the_verbs_of_the_command_line() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| `trainwarden (\w+)` \|", readme, re.MULTILINE)) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_guide_names_every_option_of_every_verb(verb: str) -> None:
    section = GUIDE.partition(f"### trainwarden {verb}\n")[2].partition("\n### trainwarden ")[0]
    for action in docs.parsers()[verb]._actions:
        if not isinstance(action, argparse._HelpAction):
            for name in action.option_strings or [str(action.metavar)]:
                assert name in section


def test_guide_names_every_key_of_the_configuration_and_its_default() -> None:
    rows = re.findall(r"^\| (?:`\[(\w+)\]`)? ?\| `(\w+)` \| `([^`]*)` \|", GUIDE, re.MULTILINE)
    told: dict[tuple[str, str], str] = {}
    section = ""
    for name, key, default in rows:
        section = name or section
        told[section, key] = default
    real = {
        (part.name, key.name): msgspec.json.encode(getattr(getattr(config.Config(), part.name), key.name)).decode()
        for part in msgspec.structs.fields(config.Config)
        if part.name != "alerts"
        for key in msgspec.structs.fields(part.type)
    }
    assert told == real


def test_guide_names_every_key_of_every_alert_channel() -> None:
    section = GUIDE.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    for channel in get_args(config.ChannelConfig):
        assert f'"{channel.__struct_config__.tag}"' in section
        assert [f.name for f in msgspec.structs.fields(channel) if f"`{f.name}`" not in section] == []


def test_guide_names_every_environment_variable_of_ours() -> None:
    used: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used |= {node.value} if re.fullmatch(r"TRAINWARDEN_[A-Z_]*[A-Z]", node.value) else set()
    assert used
    assert [name for name in sorted(used) if f"`{name}`" not in GUIDE] == []


def test_every_detector_has_a_section_under_its_id() -> None:
    known = anchors(ROOT / "docs" / "detectors.md")
    assert {d.id for d in all_detectors()} <= known
    raised: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        raised |= set(re.findall(r'detector="([a-z_]+)"', path.read_text(encoding="utf-8")))
    assert raised <= known


def test_formats_name_every_field_of_records_entries_and_messages() -> None:
    page = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    for noun in (*get_args(model.Entry), *get_args(wire.Frame), model.Seal, model.StageDigest, model.Detail):
        row = next(line for line in page.splitlines() if re.match(rf"\| (`\w+`<br>)?{noun.__name__} \|", line))
        for field in noun.__struct_fields__:
            assert f"`{field}`" in row
    for stage in model.STAGES:
        assert f"| `{stage}` |" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if str(place.relative_to(ROOT)) in LATER:
            continue
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


def test_no_page_names_a_package_host() -> None:
    hosts = re.compile(r"\b(?:pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.org|huggingface\.co)\b")
    assert [str(p) for p in PAGES if hosts.search(p.read_text(encoding="utf-8"))] == []


def test_decisions_are_numbered_and_listed() -> None:
    folder = ROOT / "docs" / "adr"
    listed = LINK.findall((folder / "README.md").read_text(encoding="utf-8"))
    files = sorted(p.name for p in folder.glob("0*.md"))
    assert listed == files
    assert [int(name[:4]) for name in files] == list(range(1, len(files) + 1))


def test_figures_block_shows_what_was_measured_and_says_what_was_not() -> None:
    result = {"machine": "a machine", "commit": "c" * 40, "date": "2026-11-23", "summary": {"chat_overhead_pct": 1.234}}
    block = docs.results_block({"record": result})
    assert "| 1.23 % | ≤ 3 % |" in block
    assert f"{docs.NOT_MEASURED} | ≤ 1.3 × |" in block
    assert "a machine; commit `cccccccccccc`; 2026-11-23." in block
    assert docs.results_block({}).count(docs.NOT_MEASURED) == len(docs.FIGURES)


def test_filling_a_block_leaves_the_rest_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x:begin -->\nold\n<!-- x:end -->\nafter\n")
    assert docs._filled(page, {"x": lambda: r"new \1"}) == "before\n<!-- x:begin -->\nnew \\1\n<!-- x:end -->\nafter\n"
    with pytest.raises(SystemExit, match="has no block"):
        docs._filled(page, {"y": lambda: "new"})
