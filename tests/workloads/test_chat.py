"""The chat workload: what its data may hold, that its model is a Llama, and that its runs are bitwise repeatable."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chat_scripts import launch, run
from safetensors.torch import load_file

TINY = ("--width", "16", "--layers", "2", "--heads", "2", "--inner", "24", "--block", "16", "--batch-size", "2")
SMALL = ("--block", "32", "--rank-lora", "2", "--layers-lora", "2")


def tiny(code: SimpleNamespace, *, layers: int, kv_heads: int, width: int = 16) -> torch.nn.Module:
    shape = {"vocab": 50, "width": width, "layers": layers, "heads": 2, "kv_heads": kv_heads, "inner": 24}
    return code.load.fresh_model({"shape": shape})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    "text",
    [
        "yesterday I met Sarah there",
        "sarah's dog is nice",
        "hello, my name is zorblax",
        "I'm Will, nice to meet you",
        "call me Grace",
        "what the FUCK",
        "write me at someone@example.org",
        "it is at www.example.org",
        "+49 170 123 45 67",
    ],
)
def test_a_turn_that_identifies_or_insults_is_left_out(code: SimpleNamespace, text: str) -> None:
    assert code.words.says_too_much(text)


@pytest.mark.parametrize(
    "text", ["I will do it", "I'm tired", "grace is a virtue", "class starts at 8", "I scored 1200"]
)
def test_a_harmless_turn_stays(code: SimpleNamespace, text: str) -> None:
    assert not code.words.says_too_much(text)


def test_no_reply_answers_a_turn_that_was_left_out(code: SimpleNamespace) -> None:
    turns = ["hi", "hello", "I am Zork", "nice to meet you", "thanks", "  "]
    assert list(code.data.clean(turns)) == [["hi", "hello"], ["nice to meet you", "thanks"]]


def test_prepared_text_holds_no_sender_id_and_nothing_filtered(code: SimpleNamespace, prepared: Path) -> None:
    from tokenizers import Tokenizer

    small = Tokenizer.from_file(str(prepared / "tokenizer.json"))
    text = small.decode(np.load(prepared / "pretrain-train.tokens.npy").tolist(), skip_special_tokens=False)
    said = [turn for part in text.split("<|first|>") for turn in part.split("<|second|>")]
    assert len(said) > 100
    assert not any(code.words.says_too_much(turn) for turn in said)
    raw = json.loads((code.base.package_folder("chitchat_dataset") / "dataset.json").read_bytes())
    senders = {m["sender"] for c in list(raw.values())[:40] for turn in c["messages"] for m in turn}
    assert senders
    assert not any(sender in text for sender in senders)


def test_a_conversation_is_held_out_whatever_else_is_prepared(code: SimpleNamespace) -> None:
    few, more = code.data.split(40), code.data.split(80)
    assert few["held-out"] == more["held-out"][: len(few["held-out"])]
    assert not {tuple(turns) for turns in more["held-out"]} & {tuple(turns) for turns in more["train"]}


def test_the_same_command_prepares_the_same_bytes(prepared: Path, tmp_path: Path) -> None:
    run("data.py", "--out", tmp_path, "--limit", "40", "--kind", "pretrain")
    again = contents(tmp_path)
    assert len(again) == 5
    assert again == {name: value for name, value in contents(prepared).items() if name in again}


def test_only_what_the_assistant_says_is_labelled(code: SimpleNamespace, prepared: Path) -> None:
    from tokenizers import Tokenizer

    large = Tokenizer.from_file(str(prepared / "base" / "tokenizer.json"))
    data = code.load.Exchanges(prepared, "train", 96)
    assert len(data) > 50
    for tokens, labels in (data[i] for i in range(len(data))):
        assert tokens.shape == labels.shape == (96,)
        shown = torch.roll(tokens, -1)[labels != code.model.IGNORE]
        assert torch.equal(shown, labels[labels != code.model.IGNORE])
        replies = large.decode(tokens.tolist(), skip_special_tokens=False).split("<|im_start|>assistant\n")[1:]
        labelled = large.decode(labels[labels != code.model.IGNORE].tolist(), skip_special_tokens=False)
        for reply in replies:
            said = reply.split("\n")[0].split("<|endoftext|>")[0]
            assert labelled.startswith(said)
            labelled = labelled[len(said) :]
        assert labelled == ""


# --------------------------------------------------------------------------- model


def test_logits_are_those_of_transformers_llama(code: SimpleNamespace) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=48, rms_norm_eps=1e-5, tie_word_embeddings=True, rope_theta=5000.0,
        )
    ).eval()  # fmt: skip
    theta = theirs.config.rope_parameters["rope_theta"]
    ours = code.model.Llama(code.model.Shape(97, 32, 2, 4, 2, 48, theta=theta))
    ours.load_state_dict(theirs.model.state_dict())
    tokens = torch.randint(97, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-6)


def test_token_by_token_gives_the_logits_of_the_whole(code: SimpleNamespace) -> None:
    torch.manual_seed(0)
    model = tiny(code, layers=2, kv_heads=1)
    tokens, cache = torch.randint(50, (1, 12)), {}
    with torch.no_grad():
        whole = model(tokens)
        parts = [model(tokens[:, :5], cache=cache), *(model(tokens[:, i : i + 1], cache=cache) for i in range(5, 12))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_loss_leaves_unlabelled_positions_out(code: SimpleNamespace) -> None:
    torch.manual_seed(0)
    model = tiny(code, layers=1, kv_heads=2)
    tokens, labels = torch.randint(50, (2, 12)), torch.randint(50, (2, 12))
    labels[:, ::3] = code.model.IGNORE
    expected = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), labels.flatten())
    torch.testing.assert_close(model(tokens, labels), expected)


def test_lora_begins_as_nothing_and_trains_nothing_else(code: SimpleNamespace) -> None:
    torch.manual_seed(0)
    model = tiny(code, layers=3, kv_heads=1)
    tokens = torch.randint(50, (1, 9))
    before = model(tokens)
    code.model.add_lora(model, 2, 32.0, 0.0, 2)
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=0)
    names = set(code.checkpoint.trained(model))
    assert len(names) == 2 * 7 * 2
    assert all(name.startswith(("layers.1.", "layers.2.")) and name.endswith((".down", ".up")) for name in names)


def test_smollm2_out_of_its_gguf_file_knows_the_capital_of_france(code: SimpleNamespace, prepared: Path) -> None:
    speaker = code.chat.speaker_at(prepared, None)
    assert "Paris" in speaker.reply(["What is the capital of France?"], 0.0, 1.0, 12, torch.Generator())


# --------------------------------------------------------------------------- order and checkpoints


def test_a_placed_sampler_continues_the_epoch_where_it_was(code: SimpleNamespace) -> None:
    sampler = code.loop.PlacedSampler(range(40), 2, 1, shuffle=True, seed=3)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.start = 7
    assert list(sampler) == whole[7:]


def test_an_unfinished_checkpoint_is_not_resumed(code: SimpleNamespace, tmp_path: Path) -> None:
    assert code.folders.newest(tmp_path) is None
    for name in ("step-000006", ".step-000018.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    (tmp_path / "step-000012").mkdir()  # no state.json: not one that was written whole
    assert code.folders.newest(tmp_path) == tmp_path / "step-000006"


def saved(code: SimpleNamespace, folder: Path, width: int = 16) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = tiny(code, layers=1, kv_heads=2, width=width)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randint(50, (1, 9)), torch.randint(50, (1, 9))).backward()
    optimizer.step()
    code.checkpoint.save(folder, {"step": 1, "world": 1}, model, optimizer, 0)
    return model, optimizer


def test_a_checkpoint_gives_back_weights_moments_and_random_state(code: SimpleNamespace, tmp_path: Path) -> None:
    model, optimizer = saved(code, tmp_path)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    moments = {i: {k: v.clone() for k, v in s.items()} for i, s in optimizer.state_dict()["state"].items()}
    drawn = torch.rand(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    fresh = torch.optim.AdamW(model.parameters(), lr=7.0)
    code.checkpoint.restore(tmp_path / "step-000001", model, fresh, 0, 1)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert all(torch.equal(v, moments[i][k]) for i, s in fresh.state_dict()["state"].items() for k, v in s.items())
    assert fresh.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert torch.equal(torch.rand(3), drawn)


def test_a_checkpoint_saved_again_replaces_the_old_one_whole(code: SimpleNamespace, tmp_path: Path) -> None:
    saved(code, tmp_path)
    (tmp_path / "step-000001" / "left.over").touch()
    saved(code, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert not (tmp_path / "step-000001" / "left.over").exists()


def test_resuming_another_model_or_world_is_refused(code: SimpleNamespace, tmp_path: Path) -> None:
    saved(code, tmp_path)
    model, optimizer = saved(code, tmp_path / "other", width=8)
    with pytest.raises(SystemExit, match="is not of this model"):
        code.checkpoint.restore(tmp_path / "step-000001", model, optimizer, 0, 1)
    with pytest.raises(SystemExit, match="saved by 1 ranks, this run has 2"):
        code.checkpoint.restore(tmp_path / "step-000001", model, optimizer, 0, 2)


@pytest.mark.parametrize("file", ["state.json", "model.safetensors", "optimizer.safetensors", "rng-rank0.safetensors"])
def test_a_damaged_checkpoint_is_one_clear_error(code: SimpleNamespace, tmp_path: Path, file: str) -> None:
    model, optimizer = saved(code, tmp_path)
    damaged = tmp_path / "step-000001" / file
    damaged.write_bytes(damaged.read_bytes()[:7])
    with pytest.raises(SystemExit, match="no readable checkpoint at"):
        code.checkpoint.restore(tmp_path / "step-000001", model, optimizer, 0, 1)


# --------------------------------------------------------------------- runs (train.py is either script by a choice)


def test_pretraining_resumed_is_bitwise_pretraining_that_never_stopped(prepared: Path, tmp_path: Path) -> None:
    common = ("--data", prepared, "--checkpoint-every", "3", *TINY)
    printed = run("pretrain.py", *common, "--out", tmp_path / "whole", "--steps", "6")
    assert [line.split()[:2] for line in printed.splitlines()] == [["step", str(step)] for step in range(1, 7)]
    shutil.copytree(tmp_path / "whole" / "step-000003", tmp_path / "parts" / "step-000003")
    run("train.py", "--stage", "pretrain", *common, "--out", tmp_path / "parts", "--steps", "6")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_posttraining_killed_and_restarted_is_bitwise_posttraining_left_alone(small: Path, tmp_path: Path) -> None:
    common = ("--data", small, "--steps", "60", "--checkpoint-every", "20", *SMALL)
    run("train.py", *common, "--out", tmp_path / "alone", ranks=2)
    process = launch("posttrain.py", *common, "--out", tmp_path / "killed", ranks=2, restarts=1)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step 45 ") and not any("resumed" in earlier for earlier in lines):
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)
    assert process.wait(timeout=100) == 0, process.stderr.read()
    resumed = [line.strip() for line in lines if line.startswith("resumed from")]
    assert len(resumed) == 1
    assert contents(tmp_path / "killed") == contents(tmp_path / "alone")


def test_a_checkpoint_is_evaluated_and_talks_the_same_each_time(
    code: SimpleNamespace, small: Path, tmp_path: Path
) -> None:
    run("posttrain.py", "--data", small, "--out", tmp_path, "--steps", "2", "--evaluate", *SMALL)
    final = json.loads((tmp_path / "final.json").read_bytes())
    which = ("--data", small, "--checkpoint", tmp_path / "step-000002")
    measured = json.loads(run("eval.py", *which, "--block", "32"))
    assert measured["perplexity"] == round(final["perplexity"], 3)
    assert (measured["step"], measured["tokens"]) == (final["step"], final["tokens"])
    (talk,) = json.loads(run("chat.py", *which, "--prompt", "hi", "--longest", "5", "--json"))
    speaker = code.chat.speaker_at(small, tmp_path / "step-000002")
    assert talk == {"prompt": "hi", "reply": speaker.reply(["hi"], 0.7, 0.9, 5, torch.Generator().manual_seed(0))}
    assert talk["reply"]


def test_a_missing_checkpoint_is_one_clear_error(code: SimpleNamespace, small: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: no readable checkpoint at"):
        code.load.model_at(tmp_path / "none", small)


def test_missing_data_is_one_clear_error(code: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: no readable data at"):
        code.load.Blocks(tmp_path, "train", 16)
    with pytest.raises(SystemExit, match="error: no base model in"):
        code.load.base_model(tmp_path)


def test_weights_of_a_posttrained_checkpoint_are_the_lora_alone(
    small: Path, code: SimpleNamespace, tmp_path: Path
) -> None:
    model = code.load.lora_model(small, {"rank": 2, "layers": 1})
    optimizer = torch.optim.AdamW(code.checkpoint.trained(model).values())
    code.checkpoint.save(tmp_path, {"step": 0, "world": 1}, model, optimizer, 0)
    assert len(load_file(tmp_path / "step-000000" / "model.safetensors")) == 14
