"""Writes what the docs take from the code and from results/*.json: `python -m benchmarks.docs [--check]`.

Generated are the blocks between `<!-- NAME:begin -->` and `<!-- NAME:end -->` in README.md, docs/ and workloads/:

* `defence`: a row for each attack and honest run of the defence benchmark (docs/benchmarks.md), and its picture
  (docs/defence.svg);
* `results`: the measured figures beside their targets (README.md, docs/benchmarks.md);
* `video`: how often the video workload's clips show what was asked (workloads/video/README.md);
* `verbs`: the verbs of the command line (README.md);
* `options`: every verb's options, examples and exit codes (docs/guide.md);
* `entries`, `parts`, `messages`: the nouns of the log and of the wire with their fields (docs/format.md);
* `limits`: what does not replay bit for bit in every way, and why (docs/frameworks.md);
* `serving`: what a server under attack answers, and what the gate costs (docs/serving.md);
* `ranking`: what the ranking workload reaches (workloads/ranking/README.md);
* `attacks`: the catalogue of sabotage (docs/attacks.md); `rows`: what its runs come to (docs/sabotage-format.md);
* `sabotage`: what three defences find of it (docs/benchmarks.md), and its picture (docs/sabotage.svg);
* `traces`, `schemas`: runs, truths and verdicts in the neutral form (docs/sabotage-format.md).

Nothing outside the markers is touched. A figure that was never measured says so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec

from benchmarks import defence_report, gate, gate_serving, ranking
from benchmarks.sabotage import report as sabotage_report
from benchmarks.sabotage import traces
from trainwarden import model, wire
from trainwarden.audit.limits import LIMITS
from trainwarden.cli import VERBS, build_parser
from trainwarden.redteam import catalogue, outcome
from trainwarden.redteam.interface import Technique

ROOT = Path(__file__).resolve().parents[1]
NOT_MEASURED = "not measured yet"


class Figure(NamedTuple):
    """One figure that the project promises to measure: where it is, what it means, what it should be."""

    file: str
    key: str
    meaning: str
    unit: str
    target: str


FIGURES = (
    Figure(
        "record",
        "chat_overhead_pct",
        "recording every stage of every step, chat, 2 × 128 tokens a rank, 2 ranks on 2 cores",
        " %",
        "≤ 3 %",
    ),
    Figure(
        "record", "demo_overhead_pct", "the same on the demo's shorter steps, 2 × 64 tokens a rank", " %", "none set"
    ),
    Figure("record", "large_overhead_pct", "the same on a model of 100 M parameters or more", " %", "≤ 1 %"),
    Figure("record", "recorder_mib", "memory of the recorder, a rank", " MiB", "≤ 64 MiB"),
    Figure(
        "record", "digest_vs_blake3", "time of a digest, in times of plain BLAKE3 on the same bytes", " ×", "≤ 1.2 ×"
    ),
    Figure(
        "environment", "cold_vs_blake3", "checking the seal without a cache, in times of plain BLAKE3", " ×", "≤ 1.5 ×"
    ),
    Figure("environment", "warm_s", "checking the seal again, whole torch environment", " s", "< 2 s"),
    Figure("environment", "start_added_s", "what guarding adds to a start when nothing changed", " s", "≤ 1 s"),
    Figure("environment", "attacks_found", "environment traps found", "", "all"),
    Figure("audit", "audit_ratio", "time of an audit, in times of the steps it replays", " ×", "≤ 1.3 ×"),
    Figure("audit", "explain_s", "explaining the demo's step", " s", "< 60 s"),
    Figure("defence", "attacks", "attacks carried out against the chat workload", "", "all"),
    Figure("defence", "found_live", "found while the run went on", "", "all that can be"),
    Figure("defence", "found_audit", "found by replay alone", "", "the rest"),
    Figure("defence", "median_steps_to_detect", "steps from the first tampered one to the finding, median", "", "≤ 1"),
    Figure("defence", "median_seconds_to_detect", "the same in seconds", " s", "none set"),
    Figure("defence", "ettr_pct", "effective training time, an attack in 200 steps", " %", "≥ 97 %"),
    Figure("defence", "final_state_equals_honest_run", "final weights after recovery are the honest run's", "", "True"),
    Figure("defence", "false_alarms_per_10k_steps", "findings in 10,000 honest steps, benign twins included", "", "0"),
    Figure("defence", "chat_overhead_pct", "everything on, chat, 2 × 128 tokens a rank", " %", "≤ 3 %"),
    Figure("defence", "large_overhead_pct", "everything on, 100 M parameters or more", " %", "≤ 1 %"),
    Figure("video", "seen_all_pct", "clips of the video workload that show all that was asked", " %", "> 90.6 %"),
    Figure("video", "unseen_all_pct", "the same, object and motion never seen together", " %", "> 72.9 %"),
    Figure("sabotage", "techniques", "SabotageBench: techniques of sabotage carried out", "", "38"),
    Figure("sabotage", "found_pct", "attacks found, by what the run said live or by a full audit", " %", "100 %"),
    Figure("sabotage", "found_live_pct", "found while the run went on, or before it started", " %", "none set"),
    Figure("sabotage", "exact_pct", "of those with a tampered step: step, rank and tensor right", " %", "≥ 95 %"),
    Figure("sabotage", "cause_proved_pct", "of those explained: the tampered digest reproduced", " %", "100 %"),
    Figure("sabotage", "false_accusations", "honest runs and benign twins accused", "", "0"),
    Figure("sabotage", "curves_found_pct", "the same attacks, watching tuned loss and gradient norm", " %", "none set"),
    Figure("sabotage", "traincheck_found_pct", "by TrainCheck 0.2, of the few that it was run on", " %", "none set"),
    Figure("gate", "payloads_passed", "live payloads that a scan passes", "", "0"),
    Figure("gate", "benign_refused", "benign files that it refuses", "", "≤ 1 of 20"),
    Figure("gate", "scan_500mb_cpu_s", "CPU time of a scan, a torch archive of 500 MB", " s", "≤ 0.07 s"),
    Figure("gate", "scan_2000_cpu_s", "CPU time of a scan, 2,000 small pickles", " s", "< 0.40 s"),
    Figure("log", "records_per_s", "step records a second into a log server, clients included", "", "≥ 100,000"),
    Figure(
        "log", "records_vs_encoding", "the same, of what the two clients' Parquet alone would allow", " ×", "none set"
    ),
    Figure("log", "append_p99_ms", "a durable append to it, 99th percentile, 8 connections", " ms", "none set"),
    Figure(
        "log", "appends_vs_fsync", "such appends a second, of the bare fsyncs that one file takes", " ×", "none set"
    ),
    Figure("log", "bytes_per_record", "what it stores for a step record", " B", "about 64 B"),
    Figure("log", "crash_losses", "acknowledged entries lost over all crash points", "", "0"),
    Figure(
        "incident",
        "damage_error_pct",
        "damage: error of the loss found in a simulated cluster, worst seed",
        " %",
        "≤ 5 %",
    ),
    Figure("incident", "honest_loss_pct", "the same where nothing was done, of what was held, worst seed", " %", "0"),
    Figure("incident", "ranks_simulated", "ranks of that cluster", "", "thousands"),
    Figure("incident", "scenarios", "scripted incidents with known truth", "", "≥ 10"),
    Figure("incident", "false_accusations", "of these, an account named whose holder did not do it", "", "0"),
    Figure("incident", "abstentions", "of these, nobody named; five cannot be told from their records", "", "none set"),
    Figure("incident", "custody_events", "custody events joined at once", "", "10⁷"),
    Figure("incident", "timeline_s", "their timeline, traces and matrix, 2 cores", " s", "≤ 60 s"),
    Figure("incident", "timeline_mib", "most memory of that", " MiB", "≤ 2,048 MiB"),
    Figure("incident", "dossier_bytes_flipped", "dossier: bytes flipped one at a time, of all members", "", "none set"),
    Figure("incident", "dossier_flips_found", "of these found, and the member named", "", "all"),
    Figure("incident", "dossier_verify_s", "seconds to check one", " s", "none set"),
    Figure("ranking", "auc", "ranking workload, AUC on each person's later events, mean of 4 seeds", "", "none set"),
    Figure("ranking", "fields_auc", "the same of a logistic regression on the same fields", "", "less"),
    Figure("ranking", "fields_and_history_auc", "and of one with features made by hand", "", "less"),
)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Every results file by its name without `.json`."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def figures_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The promised figures beside their targets."""
    rows = ["| what | measured | target |", "|---|---|---|"]
    for f in FIGURES:
        value = results.get(f.file, {}).get("summary", {}).get(f.key)
        rows.append(f"| {f.meaning} | {NOT_MEASURED if value is None else _number(value) + f.unit} | {f.target} |")
    return "\n".join(rows)


def results_block(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The promised figures, then everything that each results file sums up, with its machine, commit and date."""
    parts = [figures_table(results)]
    for name, result in results.items():
        parts.append(f"### {name}\n\n{_origin(result)}")
        rows = [f"| `{key}` | {_number(value)} |" for key, value in result["summary"].items()]
        parts.append("\n".join(["| figure | value |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def limits_block() -> str:
    """What the doctor knows of features, and what it goes by."""
    head = ["| feature | what does not hold | why | what shows its use |", "|---|---|---|---|"]
    words = {f.feature: ", ".join(f"`{word}`" for word in f.words) for f in LIMITS}
    without = {f.feature: ", ".join(f"`{word}`" for word in f.unless) for f in LIMITS if f.unless}
    shown = {name: said + (f"; none of {without[name]}" if name in without else "") for name, said in words.items()}
    return "\n".join([*head, *(f"| {f.feature} | {f.holds} | {f.why} | {shown[f.feature]} |" for f in LIMITS)])


def readme_block(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The promised figures, and where they were measured."""
    machines = list(dict.fromkeys(_machine(results[f.file]) for f in FIGURES if f.file in results))
    where = f"\n\nMeasured on {'; '.join(machines)}." if machines else ""
    return figures_table(results) + where


def video_block(result: Mapping[str, Any] | None) -> str:
    """What share of the video workload's clips show what was asked, by part of the prompt."""
    if result is None:
        return NOT_MEASURED
    s = result["summary"]
    rows = ["| prompts | clips | object | motion | background | all three |", "|---|---|---|---|---|---|"]
    for kind, meaning in (("seen", "object and motion trained on together"), ("unseen", "a held-out pair")):
        shares = [f"{s[f'{kind}_{role}_pct']} %" for role in ("object", "motion", "background", "all")]
        rows.append(" | ".join([f"| {meaning}", str(s[f"{kind}_clips"]), *shares[:3], f"**{shares[3]}** |"]))
    said = (
        f"{s['parameters'] / 1e6:.2f} million parameters, {s['steps']:,} steps of {s['clips_a_step']} clips. Of clips "
        f"freshly composed, the rules read {s['reader_pct']} % right.\n{_origin(result)}"
    )
    return "\n".join([*rows, "", said])


def verbs_block() -> str:
    """A row for each verb, with the sentence that `trainwarden -h` has for it."""
    rows = [f"| `trainwarden {name}` | {parser.description} |" for name, parser in parsers().items()]
    return "\n".join(["| verb | what it does |", "|---|---|", *rows])


def options_block() -> str:
    """Every verb's options, examples and exit codes."""
    return "\n\n".join(_options(name, parser) for name, parser in parsers().items())


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every verb, in the order of `trainwarden -h`."""
    (verbs,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {name: verbs.choices[name] for name in VERBS}


def entries_block() -> str:
    """Every noun that can be a leaf of the log."""
    return _nouns(get_args(model.Entry))


def parts_block() -> str:
    """The nouns that entries, seals and manifests are made of."""
    entries = get_args(model.Entry)
    nouns = [v for v in vars(model).values() if isinstance(v, type) and issubclass(v, model.Noun)]
    return _nouns([noun for noun in nouns if noun is not model.Noun and noun not in entries])


def messages_block() -> str:
    """Every message between a rank and its watcher."""
    return _nouns(get_args(wire.Frame))


def attacks_block() -> str:
    """A row for each technique and variant: what it does, what it takes, the evidence it must leave, its twin."""
    rows = [
        "| id | technique | needs | MITRE | variant | what it does | expected evidence | effect |",
        "|---" * 8 + "|",
    ]
    techniques = catalogue.load()
    for t in techniques:
        rows += _attack(t)
    twins = ["| id | benign twin | what it does |", "|---|---|---|"]
    twins += [f"| {t.id} | {_cell(t.twin.name)} | {_cell(t.twin.does)} |" for t in techniques]
    return "\n".join(rows) + "\n\n" + "\n".join(twins)


def _attack(t: Technique) -> list[str]:
    star = " ★" if t.alleged else ""
    head = [t.id, f"[{_cell(t.title)}](../attacks/t{t.id}_{t.slug.replace('-', '_')}.py){star}", t.needs, t.atlas]
    rows = []
    for v in t.variants:
        evidence = "<br>".join(_cell(e.words) for e in v.expects)
        rows.append("| " + " | ".join([*head, f"`{v.name}`", _cell(v.does), evidence, v.effect.value]) + " |")
        head = [""] * 4
    return rows


def rows_block() -> str:
    """The nouns of a row of the sabotage format."""
    return _nouns([outcome.Outcome, outcome.Marked, outcome.Found, outcome.Expected, outcome.Effects])


def traces_block() -> str:
    """The nouns of the neutral form of runs."""
    return _nouns([traces.Run, traces.Step, traces.Truth, traces.Struck, traces.Verdict])


def schemas_block() -> str:
    """The same as JSON Schema (2020-12)."""
    _, parts = msgspec.json.schema_components([traces.Run, traces.Step, traces.Truth, traces.Verdict])
    return f"```json\n{json.dumps({'$defs': parts}, indent=1)}\n```"


def generated(root: Path) -> dict[Path, str]:
    """Every file that has generated blocks, as it should be now."""
    results = read_results(root / "results")
    blocks: dict[str, dict[str, Callable[[], str]]] = {
        "README.md": {"verbs": verbs_block, "results": lambda: readme_block(results)},
        "docs/benchmarks.md": {
            "results": lambda: results_block(results),
            "defence": lambda: defence_report.block(results.get("defence")),
            "sabotage": lambda: sabotage_report.block(results.get("sabotage")),
        },
        "docs/gate.md": {"scan": lambda: gate.block(results.get("gate"))},
        "docs/attacks.md": {"attacks": attacks_block},
        "workloads/video/README.md": {"video": lambda: video_block(results.get("video"))},
        "docs/sabotage-format.md": {"rows": rows_block, "traces": traces_block, "schemas": schemas_block},
        "docs/guide.md": {"options": options_block},
        "docs/frameworks.md": {"limits": limits_block},
        "docs/format.md": {"entries": entries_block, "parts": parts_block, "messages": messages_block},
        "docs/serving.md": {"serving": lambda: gate_serving.block(results.get("gate"))},
        "workloads/ranking/README.md": {"ranking": lambda: ranking.block(results.get("ranking"))},
    }
    texts = {root / name: _filled(root / name, made) for name, made in blocks.items()}
    if "defence" in results:
        texts[root / "docs" / "defence.svg"] = defence_report.plot(results["defence"])
    if "sabotage" in results:
        texts[root / "docs" / "sabotage.svg"] = sabotage_report.plot(results["sabotage"])
    return texts


def main(argv: list[str] | None = None) -> int:
    """Write the blocks; with `--check` only say which files are out of date (exit code 1)."""
    parser = argparse.ArgumentParser(description="Generate the docs' figures, verbs and options.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if something is out of date")
    check = parser.parse_args(argv).check
    texts = generated(ROOT)
    stale = {p: text for p, text in texts.items() if not p.exists() or p.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        print(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return 1 if check and stale else 0


def _filled(path: Path, blocks: Mapping[str, Callable[[], str]]) -> str:
    text = path.read_text(encoding="utf-8")
    for name, make in blocks.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"error: {path} has no block {begin} … {end}")
        block = f"{begin}\n{make()}\n{end}"
        text = pattern.sub(lambda _, block=block: block, text)  # type: ignore[misc]
    return text


def _nouns(nouns: Sequence[type[msgspec.Struct]]) -> str:
    rows = [f"| {_tag(n)} | {_cell(_sentence(n))} | {_fields(n)} |" for n in nouns]
    return "\n".join(["| type | what it says | fields |", "|---|---|---|", *rows])


def _tag(noun: type[msgspec.Struct]) -> str:
    tag = noun.__struct_config__.tag
    return f"`{tag}`<br>{noun.__name__}" if tag else noun.__name__


def _sentence(noun: type[msgspec.Struct]) -> str:
    return " ".join((noun.__doc__ or "").partition("\n\n")[0].split())


def _fields(noun: type[msgspec.Struct]) -> str:
    kinds = {
        name: kind for base in reversed(noun.__mro__) for name, kind in vars(base).get("__annotations__", {}).items()
    }
    return "<br>".join(_cell(f"`{name}`: {kinds[name]}") for name in noun.__struct_fields__) or "none"


def _options(name: str, parser: argparse.ArgumentParser) -> str:
    shown = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    rows = [f"| `{_spelled(action)}` | {_cell(action.help or '')} |" for action in shown]
    table = "\n".join(["| option | meaning |", "|---|---|", *rows])
    return f"### trainwarden {name}\n\n{parser.description}\n\n{table}\n\n```text\n{parser.epilog}\n```"


def _spelled(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else ""
    if action.choices is not None and not value:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if action.nargs == 0:
        value = ""
    elif action.option_strings and not value:
        value = action.dest.upper()
    return " ".join(filter(None, [", ".join(action.option_strings), value])) or action.dest


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _origin(result: Mapping[str, Any]) -> str:
    return f"{_machine(result)}; commit `{str(result['commit'])[:12]}`; {result['date']}."


def _machine(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    if isinstance(machine, Mapping):
        return ", ".join(f"{key} {value}" for key, value in machine.items())
    return str(machine)


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    return f"{value:,}" if type(value) is int else str(value)


if __name__ == "__main__":
    sys.exit(main())
