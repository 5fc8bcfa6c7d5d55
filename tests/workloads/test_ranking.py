"""The ranking workload: its split knows nothing of the future, its runs repeat bit for bit, guarded they are silent.

Everything runs on a MovieLens of a dozen people; what needs the real one is skipped where its wheel was not fetched.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chat_scripts import run
from ranking_data import EACH, PEOPLE, RANKING, Rating, ratings, write_wheel
from safetensors.numpy import load_file

from tests.audit import guarded_job
from trainwarden.audit.engine import Audit
from trainwarden.detect import Engine, all_detectors
from trainwarden.model import Finding, Gap, Matched, PassSeen, Severity, StepRecord

NAMES = ("baseline", "checkpoint", "data", "folders", "load", "model", "scores", "train")
PARTS = ("train", "validation", "test")
TINY = ("--width", "4", "--history", "6", "--inner", "8", "--batch-size", "8")
TORCHRUN = """
import sys

from torch.distributed.run import main

main(["--nproc-per-node", sys.argv[1], "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", *sys.argv[2:]])
"""


@pytest.fixture(scope="module")
def ranking() -> Iterator[SimpleNamespace]:
    """The workload's modules, imported as its scripts import them, and forgotten afterwards."""
    hidden = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    sys.path.insert(0, str(RANKING))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    sys.path.remove(str(RANKING))
    for name in NAMES:
        sys.modules.pop(name, None)
    sys.modules.update(hidden)


def start(script: str, *words: str | Path, ranks: int = 0) -> str:
    return run(str(RANKING / script), *words, ranks=ranks)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What data.py makes of the small MovieLens."""
    folder = tmp_path_factory.mktemp("ranking")
    start("data.py", "--wheel", write_wheel(folder / "small.whl", ratings()), "--out", folder / "data")
    return folder / "data"


@pytest.fixture
def real(ranking: SimpleNamespace) -> Path:
    """The real wheel."""
    if not ranking.data.WHEEL.exists():
        pytest.skip(f"{ranking.data.WHEEL.name} was not fetched: `make setup` says why")
    return Path(ranking.data.WHEEL)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --------------------------------------------------------------------------- data


def test_a_split_never_trains_on_a_persons_later_events(prepared: Path) -> None:
    parts = [load_file(prepared / f"{part}.safetensors") for part in PARTS]
    assert sum(len(part["time"]) for part in parts) == PEOPLE * EACH
    for person in range(1, PEOPLE + 1):
        train, validation, test = (part["time"][part["fields"][:, 0] == person] for part in parts)
        assert train.max() < validation.min()
        assert validation.max() < test.min()


def test_a_history_holds_the_earlier_seconds_and_nothing_else(ranking: SimpleNamespace, prepared: Path) -> None:
    rated = ratings()
    shared = 0
    item = [name for name, _ in json.loads((prepared / "shape.json").read_bytes())["fields"]].index("item")
    for part in (load_file(prepared / f"{part}.safetensors") for part in PARTS):
        for fields, time, films, answers, past in zip(
            *(part["fields"].tolist(), part["time"].tolist(), part["history"], part["answers"], part["past"].tolist()),
            strict=True,
        ):
            before = [r for r in rated if r[0] == fields[0] and r[3] < time]
            expected = {(film, 2 if stars >= 4 else 1) for _, film, stars, _ in before}
            assert past == [sum(stars < 4 for _, _, stars, _ in before), sum(stars >= 4 for _, _, stars, _ in before)]
            held = answers > 0
            assert set(zip(films[held].tolist(), answers[held].tolist(), strict=True)) == expected
            assert not held[len(expected) :].any()
            assert fields[item] not in films[held]
            second = {film: moment for person, film, _, moment in rated if person == fields[0]}
            order = [second[film] for film in films[held].tolist()]
            assert order == sorted(order, reverse=True)
            shared += sum(r[0] == fields[0] and r[3] == time for r in rated) > 1
    assert shared > 50, "events that share their second with others were met"


def changed_after(part: str, prepared: Path) -> list[Rating]:
    """The ratings, with every answer of `part` turned round."""
    turned = load_file(prepared / f"{part}.safetensors")
    moments = set(zip(turned["fields"][:, 0].tolist(), turned["time"].tolist(), strict=True))
    return [(p, f, 6 - s if (p, t) in moments else s, t) for p, f, s, t in ratings()]


def test_other_answers_later_change_no_byte_of_what_came_before(prepared: Path, tmp_path: Path) -> None:
    for part, same in (("test", 2), ("validation", 1)):
        wheel = write_wheel(tmp_path / f"{part}.whl", changed_after(part, prepared))
        start("data.py", "--wheel", wheel, "--out", tmp_path / part)
        equal = [contents(prepared)[f"{p}.safetensors"] == contents(tmp_path / part)[f"{p}.safetensors"] for p in PARTS]
        assert equal == [n < same for n in range(3)]


def test_the_same_command_prepares_the_same_bytes(prepared: Path, tmp_path: Path) -> None:
    start("data.py", "--wheel", prepared.parent / "small.whl", "--out", tmp_path)
    assert contents(tmp_path) == contents(prepared)


def test_a_missing_wheel_is_one_clear_error(ranking: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: no MovieLens-100k in .*\nhint: `make setup` downloads it"):
        ranking.data.read(tmp_path / "none.whl", "user")
    with pytest.raises(SystemExit, match=r"error: no readable data at .*\nhint: python workloads/ranking/data.py"):
        ranking.load.Events(tmp_path, "train", 5)


def test_movielens_is_read_whole(ranking: SimpleNamespace, real: Path) -> None:
    columns, part, sizes = ranking.data.prepare(real)
    assert (len(part), columns["genres"].shape[1]) == (100_000, 19)
    assert (dict(sizes)["user"], dict(sizes)["item"]) == (944, 1_683)
    assert columns["liked"].sum() == 55_375, "four and five stars"
    assert np.bincount(part).tolist() == [81_494, 9_857, 8_649]


# --------------------------------------------------------------------------- scores and model


def test_auc_is_the_share_of_pairs_in_order(ranking: SimpleNamespace) -> None:
    draw = np.random.default_rng(0)
    guessed, truth = draw.integers(0, 9, 200).astype(float), draw.random(200) < 0.4
    pairs = guessed[truth][:, None] - guessed[~truth][None]
    assert ranking.scores.auc(guessed, truth) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    whose = np.repeat([0, 1, 2], [90, 90, 20])
    truth[180:] = True  # somebody who likes everything has no order
    own = [ranking.scores.auc(guessed[s], truth[s]) for s in (slice(0, 90), slice(90, 180))]
    assert ranking.scores.auc_within(guessed, truth, whose) == pytest.approx(np.mean(own))


def small(ranking: SimpleNamespace, prepared: Path, events: str = "train") -> tuple[torch.nn.Module, object]:
    known = json.loads((prepared / "shape.json").read_bytes())
    torch.manual_seed(0)
    shape = ranking.model.Shape(known["fields"], known["genres"], 4, history=6, layers=2, inner=8, dropout=0.3)
    return ranking.model.Ranker(shape).eval(), ranking.load.Events(prepared, events, 6)


def test_empty_places_of_a_history_count_for_nothing(ranking: SimpleNamespace, prepared: Path) -> None:
    model, events = small(ranking, prepared)
    batch = events.__getitems__(list(range(len(events))))
    empty = batch.answers == 0
    assert empty.any()
    assert not empty.all()
    other = batch._replace(history=torch.where(empty, 5, batch.history))
    assert torch.equal(model.logits(other), model.logits(batch))
    assert not torch.equal(model.logits(batch._replace(history=batch.history.flip(0))), model.logits(batch))


def test_the_optimizers_groups_are_in_the_order_of_the_model(ranking: SimpleNamespace, prepared: Path) -> None:
    from argparse import Namespace

    model, _ = small(ranking, prepared)
    given = Namespace(lr=1.0, lr_biases=2.0, weight_decay=0.1, weight_decay_tables=0.2)
    grouped = [id(p) for group in ranking.train.groups(model, given) for p in group["params"]]
    assert grouped == [id(p) for p in model.parameters()], "checkpoints name the optimizer's state by that order"


def test_a_logistic_regression_stands_where_its_penalised_loss_is_least(
    ranking: SimpleNamespace, prepared: Path
) -> None:
    base = ranking.baseline
    sizes = [size for _, size in json.loads((prepared / "shape.json").read_bytes())["fields"]]
    on = base.table(ranking.load.Events(prepared, "train", base.HISTORY), sizes, by_hand=True)
    nothing = base.nothing(sum(sizes), on.columns.shape[1])
    fitted = base.Weights(*(w.requires_grad_() for w in base.fit(on, nothing, penalty=1.0)))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(base.logits(fitted, on), on.liked, reduction="sum")
    (loss + 0.5 * (fitted.values.square().sum() + fitted.columns.square().sum())).backward()
    assert max(float(w.grad.abs().max()) for w in fitted) < 0.01
    assert fitted.columns[-1] != 0


# --------------------------------------------------------------------------- runs


def test_a_run_resumed_is_bitwise_one_that_never_stopped_and_is_measured_the_same(
    prepared: Path, tmp_path: Path
) -> None:
    common = ("--data", prepared, "--steps", "24", "--checkpoint-every", "8", "--evaluate", *TINY)
    start("train.py", *common, "--out", tmp_path / "whole", ranks=2)
    shutil.copytree(tmp_path / "whole" / "step-000008", tmp_path / "parts" / "step-000008")
    printed = start("train.py", *common, "--out", tmp_path / "parts", ranks=2)
    assert printed.startswith("resumed from ")
    steps = [line.split()[1] for line in printed.splitlines() if line.startswith("step ")]
    assert steps == [str(step) for step in range(9, 25)]
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "parts") == whole
    state = json.loads(whole["step-000024/state.json"])
    assert (state["epoch"], state["world"]) == (1, 2), "the run went into a second epoch"
    measured = json.loads(start("eval.py", "--data", prepared, "--checkpoint", tmp_path / "parts" / "step-000024"))
    assert measured["validation"] == json.loads(whole["final.json"])["validation"]
    assert set(measured["baselines"]) == {"fields", "fields_and_history"}


def found(recorded: guarded_job.Recorded) -> list[Finding]:
    engine = Engine(all_detectors())
    said: list[Finding] = []
    for index, entry in enumerate(recorded.entries):
        details = recorded.seen(entry).details if isinstance(entry, StepRecord) else None
        said += engine.observe(index, entry, details)
    return said + engine.finish()


def test_guarded_under_torchrun_it_raises_no_alarm_and_replays_bit_for_bit(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = guarded_job.make_job(tmp_path, monkeypatch, "")
    for script in RANKING.glob("*.py"):
        shutil.copy(script, job.folder)
    launcher = tmp_path / "launcher.py"
    launcher.write_text(TORCHRUN)
    monkeypatch.setattr(guarded_job, "LAUNCH", launcher)
    words = ("--data", str(prepared), "--out", "out", "--steps", "24", "--checkpoint-every", "8", *TINY)
    recorded = job.run(*words, world=2, script="train.py")
    assert [e for e in recorded.entries if isinstance(e, Gap)] == []
    assert [f for f in found(recorded) if f.severity is not Severity.INFO] == []
    passes = [e for e in recorded.entries if isinstance(e, PassSeen)]
    assert {p.rank for p in passes} == {0, 1}
    assert all(p.order == "distributed" and p.ordered == p.batches and not p.uncompared for p in passes), passes
    said = Audit(recorded, job.room).run(recorded.history.segments)
    assert len(said) >= 3
    assert all(isinstance(verdict, Matched) for verdict in said), said
