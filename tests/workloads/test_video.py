"""The video workload: what its clips show, that its scorer tells, and that its runs are repeatable, guarded or not."""

from __future__ import annotations

import importlib
import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chat_scripts import CHAT, run
from PIL import Image

VIDEO = CHAT.parent / "video"
NAMES = ("checkpoint", "composing", "eval", "flow", "folders", "model", "sample", "score", "train", "words")
TINY = ("--width", "16", "--layers", "1", "--heads", "1", "--batch-size", "2")
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
needs_font = pytest.mark.skipif(not FONT.exists(), reason="apt-get install fonts-noto-color-emoji")


@pytest.fixture(scope="module")
def video() -> Iterator[SimpleNamespace]:
    """The workload's modules, imported as its scripts import them, and forgotten afterwards."""
    hidden = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    sys.path.insert(0, str(VIDEO))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    sys.path.remove(str(VIDEO))
    for name in NAMES:
        sys.modules.pop(name, None)
    sys.modules.update(hidden)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What data.py composes: every training prompt once."""
    folder = tmp_path_factory.mktemp("clips")
    run(str(VIDEO / "data.py"), "--out", folder, "--each", "1")
    return folder


def tiny(video: SimpleNamespace) -> torch.nn.Module:
    torch.manual_seed(0)
    model = video.model.VideoDiT(video.words.vocabulary(), width=16, layers=1, heads=1)
    torch.nn.init.normal_(model.paint.weight)  # it starts as nothing
    return model.eval()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --------------------------------------------------------------------------- words and clips


def test_one_motion_of_every_object_is_never_trained_on(video: SimpleNamespace) -> None:
    seen, unseen = video.words.all_labels(unseen=False), video.words.all_labels(unseen=True)
    assert (len(seen), len(unseen)) == (336, 48)
    assert not {label[:2] for label in seen} & {label[:2] for label in unseen}
    assert sorted({label[0] for label in unseen}) == list(range(12))
    assert {label[1] for label in seen} == set(range(8))


def test_a_prompt_is_read_in_any_order_and_by_its_known_words_alone(video: SimpleNamespace) -> None:
    model = tiny(video)
    plain, turned, short, empty = model.read(
        [
            "a red apple moves left on a blue background",
            "On blue, watch: a lovely red apple that moves left!",
            "red apple",
            "",
        ]
    )
    assert torch.equal(plain, turned)
    assert torch.equal(short[0], plain[0])
    assert torch.equal(empty, video.flow.left_open(plain[None])[0])
    assert torch.equal(short[1:], empty[1:])
    every = model.read([video.words.caption(label) for label in video.words.all_labels(unseen=False)])
    assert len(every.unique(dim=0)) == 336


@needs_font
def test_training_clips_hold_no_held_out_pair_and_are_the_same_bytes_again(
    video: SimpleNamespace, clips: Path, tmp_path: Path
) -> None:
    labels = np.load(clips / "labels.npy").tolist()
    assert {tuple(label) for label in labels} == set(video.words.all_labels(unseen=False))
    run(str(VIDEO / "data.py"), "--out", tmp_path, "--each", "1")
    assert contents(tmp_path) == contents(clips)


# --------------------------------------------------------------------------- scorer


@pytest.fixture(scope="module")
def composed(video: SimpleNamespace) -> list[tuple[tuple[int, int, int], np.ndarray]]:
    """A clip of every label, held-out pairs too."""
    pictures, draw = [video.composing.picture(name) for name in video.words.OBJECTS], random.Random(7)
    labels = video.words.all_labels(unseen=False) + video.words.all_labels(unseen=True)
    return [(label, video.composing.compose(label, pictures, draw)) for label in labels]


@needs_font
def test_the_rules_read_every_composed_clip_right(video: SimpleNamespace, composed: list) -> None:
    reader = video.score.Reader()
    assert [reader.read(clip) for _, clip in composed] == [label for label, _ in composed]


@needs_font
def test_the_rules_see_what_is_wrong(video: SimpleNamespace, composed: list) -> None:
    reader, motions = video.score.Reader(), video.words.MOTIONS
    backwards = {"moves left": "moves right", "rises": "falls", "grows": "shrinks"}
    for (thing, motion, background), clip in composed[:84]:
        turned = backwards.get(motions[motion])
        if turned:
            assert reader.read(clip[::-1]) == (thing, motions.index(turned), background)
    apple, rocket = (next(clip for label, clip in composed if label == (thing, 3, 0)) for thing in (0, 1))
    assert reader.read(np.concatenate((rocket[:1], apple[1:])))[0] == 0  # one wrong frame does not outvote seven
    assert reader.read(np.concatenate((rocket[:7], apple[7:])))[0] == 1
    framed = apple.copy()
    framed[:, [0, -1]] = framed[:, :, [0, -1]] = video.words.BACKGROUNDS["pink"]
    assert reader.read(framed)[2] == list(video.words.BACKGROUNDS).index("pink")
    blank = np.broadcast_to(np.array((60, 110, 200), dtype=np.uint8), apple.shape)
    assert reader.read(blank) == (-1, -1, 0)


# --------------------------------------------------------------------------- model and sampling


def test_patches_and_frames_are_each_others_way_back(video: SimpleNamespace) -> None:
    model = tiny(video)
    clips = torch.randn(2, 8, 32, 32, 3)
    patches = model.patches(clips)
    assert patches.shape == (2, 32, 4 * 8 * 8 * 3)
    assert torch.equal(model.frames(patches), clips)
    assert torch.equal(patches[0, 0].view(4, 8, 8, 3), clips[0, :4, :8, :8])
    halves = clips[:, :, ::2, ::2]
    coarse = video.model.VideoDiT(video.words.vocabulary(), width=16, layers=1, heads=1, size=16, patch=4)
    assert torch.equal(model.frames(coarse.patches(halves), 2), halves)  # a place for two by two pixels


def test_a_model_that_knows_the_clip_has_no_loss_and_samples_it(video: SimpleNamespace) -> None:
    known = torch.rand(8, 32, 32, 3) * 2 - 1
    knowing = tiny(video)
    knowing.forward = lambda noisy, time, tokens: known.expand(len(noisy), -1, -1, -1, -1)
    tokens = knowing.read(["a fish falls", "a rocket rises"])
    assert video.flow.loss(knowing, known.expand(2, -1, -1, -1, -1), tokens).item() == 0
    assert video.flow.loss(knowing, -known.expand(2, -1, -1, -1, -1), tokens).item() > 1
    (clip,) = video.flow.sample(knowing, ["a fish falls"], seed=0)
    assert np.abs(clip.astype(float) - ((known.numpy() + 1) * 127.5)).max() <= 1


def test_guidance_goes_beyond_what_the_prompt_adds(video: SimpleNamespace) -> None:
    answering = tiny(video)
    answering.forward = lambda noisy, time, tokens: torch.where(
        (tokens[:, 0, 0] > 3)[:, None, None, None, None], 0.2, 0.1
    ).expand(noisy.shape)
    for guidance, expected in ((1.0, 0.2), (3.0, 0.4)):
        clip = video.flow.sample(answering, ["a fish"], seed=0, guidance=guidance)
        assert clip.astype(float).mean() == pytest.approx((expected + 1) * 127.5, abs=0.6)


def test_words_are_dropped_by_role_and_altogether(video: SimpleNamespace) -> None:
    tokens = tiny(video).read(["a red apple moves left on a blue background"] * 400)
    opened = video.flow.left_open(tokens)
    torch.manual_seed(0)
    assert torch.equal(video.flow.drop(tokens, whole=0, role=0), tokens)
    assert torch.equal(video.flow.drop(tokens, whole=1, role=0), opened)
    dropped = (video.flow.drop(tokens, whole=0, role=0.5) == opened).all(2)
    assert 0.4 < dropped.float().mean() < 0.6
    assert len(dropped.unique(dim=0)) == 8  # each role by itself


# --------------------------------------------------------------------------- checkpoints and runs


def saved(video: SimpleNamespace, out: Path) -> tuple[torch.nn.Module, torch.nn.Module, dict]:
    model, averaged = tiny(video), tiny(video)
    optimizers = video.train.make_optimizers(model, {"muon": 0.02, "adamw": 0.001})
    model(torch.randn(1, 8, 32, 32, 3), torch.ones(1), model.read(["a fish"])).mean().backward()
    for optimizer in optimizers.values():
        optimizer.step()
    video.checkpoint.save(out, {"step": 1, "world": 1, "width": 16}, model, averaged, optimizers, 0)
    return model, averaged, optimizers


def test_a_saved_model_understands_the_same_words_and_makes_the_same_clip(
    video: SimpleNamespace, tmp_path: Path
) -> None:
    _, averaged, _ = saved(video, tmp_path)
    loaded = video.checkpoint.load(tmp_path / "step-000001")
    prompts = [video.words.caption(label) for label in video.words.all_labels(unseen=True)]
    assert torch.equal(loaded.read(prompts), averaged.read(prompts))  # whatever order JSON keeps
    (one,), (other,) = (video.flow.sample(m, prompts[:1], seed=3, steps=2) for m in (loaded, averaged))
    assert np.array_equal(one, other)


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_one_clear_error(
    video: SimpleNamespace, tmp_path: Path
) -> None:
    parts = saved(video, tmp_path)
    folder = tmp_path / "step-000001"
    with pytest.raises(SystemExit, match="was made with world 1, this run has 2"):
        video.checkpoint.restore(folder, {"world": 2}, *parts, 0)
    for name in (
        "state.json",
        "model.safetensors",
        "averaged.safetensors",
        "muon.safetensors",
        "rng-rank0.safetensors",
    ):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:7])
        with pytest.raises(SystemExit, match=f"no readable checkpoint at .*{name}"):
            video.checkpoint.restore(folder, {"world": 1}, *parts, 0)
        (folder / name).write_bytes(whole)
    assert video.checkpoint.restore(folder, {"world": 1}, *parts, 0) == 1


@needs_font
def test_training_resumed_is_bitwise_training_that_never_stopped_and_its_clips_come_again(
    video: SimpleNamespace, clips: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    train = (str(VIDEO / "train.py"), "--data", clips, "--checkpoint-every", "2", "--steps", "4", *TINY)
    printed = run(*train, "--out", tmp_path / "whole", ranks=2)
    assert [line.split()[:2] for line in printed.splitlines()] == [["step", str(step)] for step in range(1, 5)]
    shutil.copytree(tmp_path / "whole" / "step-000002", tmp_path / "parts" / "step-000002")
    assert "resumed from" in run(*train, "--out", tmp_path / "parts", ranks=2)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")

    which = ("--checkpoint", tmp_path / "whole" / "step-000004", "--steps", "2")
    figures = json.loads(run(str(VIDEO / "eval.py"), *which, "--prompts", "4"))
    assert figures["step"] == 4
    assert figures["reader"]["all"] > 0.99
    assert figures["seen clips"] == figures["unseen clips"] == 4
    asked = ("--prompt", "a panda grows on a pink background", "--prompt", "a fish falls")
    (tmp_path / "made").mkdir()
    out = ("--out", tmp_path / "made" / "clip.gif", "--sheet", tmp_path / "made" / "sheet.png")
    run(str(VIDEO / "sample.py"), *which, *asked, *out, "--larger", "1")
    made = contents(tmp_path / "made")
    assert sorted(made) == ["clip-2.gif", "clip.gif", "sheet.png"]
    assert made["clip.gif"].startswith(b"GIF89a")

    model, reader = video.checkpoint.load(tmp_path / "whole" / "step-000004"), video.score.Reader()
    labels = video.words.all_labels(unseen=False)
    again = video.eval.measure(model, reader, labels[:: len(labels) // 4], 0, 2, video.flow.GUIDANCE)
    assert again == figures["seen"]
    clips_again = video.flow.sample(model, [asked[1], asked[3]], seed=0, steps=2)
    assert np.array_equal(video.sample.sheet(clips_again, 1), Image.open(tmp_path / "made" / "sheet.png"))


@needs_font
@pytest.mark.parametrize("attacked", [False, True], ids=["honest", "attacked"])
def test_guarded_training_raises_no_alarm_and_replays_bit_for_bit_and_an_attack_on_it_is_located(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attacked: bool
) -> None:
    from tests.audit.guarded_job import make_job
    from trainwarden.audit.engine import Audit
    from trainwarden.model import Diverged, Finding, Gap, Matched, Severity, StepRecord

    job = make_job(tmp_path, monkeypatch, "")
    for script in VIDEO.glob("*.py"):
        shutil.copy(script, job.folder)
    if attacked:  # an insider's file outside what is sealed: a replay has none, and does what the code says
        patched = (VIDEO / "train.py").read_text().replace(
            "        for optimizer in optimizers.values():\n",
            "        if step == 2 and rank == 1 and Path('evil').exists():\n"
            "            model.leave.weight.grad[0] *= -1\n        for optimizer in optimizers.values():\n",
        )  # fmt: skip
        (job.folder / "train.py").write_text(patched)
        (job.folder / "evil").touch()
    every = "8" if attacked else "2"
    recorded = job.run(
        *("--data", str(clips), "--out", "out", "--steps", "4", "--checkpoint-every", every, *TINY),
        world=2,
        script="train.py",
    )
    assert len([e for e in recorded.entries if isinstance(e, StepRecord)]) == 16  # steps × ranks × optimizers
    assert not [e for e in recorded.entries if isinstance(e, Gap)]
    alarms = [e for e in recorded.entries if isinstance(e, Finding) and e.severity is not Severity.INFO]
    said = Audit(recorded, job.room).run(recorded.history.segments)
    if attacked:
        assert isinstance(said[0], Diverged), said
        assert (said[0].at.step, said[0].at.rank, said[0].at.tensor) == (2, 1, "leave.weight")
        return
    assert alarms == []
    assert len(said) == 2
    assert all(isinstance(v, Matched) for v in said), said
