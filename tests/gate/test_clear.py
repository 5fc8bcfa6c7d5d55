"""Nothing is cleared but what was replayed back to its seal, with nothing open against it; each way around is tried."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parent))

from yard import ACTORS, KEEPER, MALLORY, Yard, diverged, finding, matched, yard

from trainwarden import descent
from trainwarden import model as m
from trainwarden.actors import registry as reg
from trainwarden.config import GateConfig
from trainwarden.errors import KeyUnusable, UsageError
from trainwarden.gate import statements
from trainwarden.gate.clear import Request, clear
from trainwarden.gate.convert.conversion import convert
from trainwarden.gate.decision import Cleared, Decision, Refused, Undecided
from trainwarden.gate.ledger import read_gate
from trainwarden.log.journal import LogWriter

__all__ = ["yard"]

TWO_OF = GateConfig(approvals=2, approvers=("ada", "grace", "agent"))


def missing(decision: Decision) -> str:
    assert isinstance(decision, Undecided), decision
    assert all(each.command.startswith(("trainwarden ", "cp ")) for each in decision.missing)
    return "\n".join(f"{each.what} → {each.command}" for each in decision.missing)


def reasons(decision: Decision) -> str:
    assert isinstance(decision, Refused), decision
    return "\n".join(decision.reasons)


def test_a_checkpoint_that_was_replayed_back_to_its_seal_is_cleared_and_logged(yard: Yard) -> None:
    run = yard.run()
    decision = yard.clear(yard.checkpoint())
    assert isinstance(decision, Cleared)
    seen = decision.clearance.runs
    assert [(r.run, r.until, r.key) for r in seen] == [(run, {"0": 8}, KEEPER.public)]
    assert decision.clearance.segments == 2
    assert read_gate(yard.store, KEEPER.public)[-1] == decision.clearance


def test_a_lone_file_of_a_checkpoint_is_cleared_under_any_name(yard: Yard, tmp_path: Path) -> None:
    yard.run()
    copy = shutil.copy(yard.checkpoint() / "model.safetensors", tmp_path / "weights.safetensors")
    assert isinstance(yard.clear(Path(copy)), Cleared)


def test_what_was_not_replayed_is_undecided_with_the_audit_that_would_settle_it(yard: Yard) -> None:
    run = yard.run(audited=False)
    assert f"trainwarden audit {run}" in missing(yard.clear(yard.checkpoint()))
    yard.says(run, matched(0, 3))
    assert f"trainwarden audit {run}" in missing(yard.clear(yard.checkpoint()))
    assert read_gate(yard.store) == ()
    yard.says(run, matched(4, 7))
    assert isinstance(yard.clear(yard.checkpoint()), Cleared)


def test_a_checkpoint_after_a_diverged_segment_is_refused_though_its_own_segment_matched(yard: Yard) -> None:
    run = yard.run(audited=False)
    yard.says(run, diverged(0, 3, at=2), matched(4, 7))
    assert "diverged" in reasons(yard.clear(yard.checkpoint()))
    assert isinstance(read_gate(yard.store)[-1], m.ClearanceRefused)


def test_a_file_edited_after_it_was_saved_is_not_cleared(yard: Yard) -> None:
    yard.run()
    path = yard.checkpoint() / "model.safetensors"
    tensors = load_file(path)
    tensors["w"][0, 0] += 1
    save_file(tensors, path)
    assert "model.safetensors is not what step 8" in missing(yard.clear(yard.checkpoint()))


def test_what_was_saved_is_put_back_by_the_command_that_is_given(yard: Yard) -> None:
    yard.run()
    assert isinstance(yard.clear(yard.checkpoint()), Cleared)
    (yard.checkpoint() / "model.safetensors").write_bytes(b"poisoned")
    decision = yard.clear(yard.checkpoint())
    assert isinstance(decision, Undecided)
    subprocess.run(decision.missing[0].command, shell=True, check=True)
    assert isinstance(yard.clear(yard.checkpoint()), Cleared)


def test_a_file_beside_the_checkpoint_that_nobody_saved_is_not_cleared(yard: Yard) -> None:
    yard.run()
    (yard.checkpoint() / "chat_template.jinja").write_text("{{ messages }}")
    assert "chat_template.jinja is no part of step 8" in missing(yard.clear(yard.checkpoint()))


def test_files_of_two_steps_put_together_are_not_cleared(yard: Yard) -> None:
    yard.run()
    shutil.copy(yard.checkpoint(4) / "model.safetensors", yard.checkpoint(8) / "model.safetensors")
    assert "is not what step" in missing(yard.clear(yard.checkpoint(8)))


def test_files_that_exchanged_their_names_are_not_cleared(yard: Yard) -> None:
    yard.run()
    one, other = yard.checkpoint() / "model.safetensors", yard.checkpoint() / "state.json"
    one.rename(yard.out / "x")
    other.rename(one)
    (yard.out / "x").rename(other)
    assert "are no part of any run" in missing(yard.clear(yard.checkpoint()))


def test_a_name_that_no_log_can_hold_makes_it_no_checkpoint(yard: Yard) -> None:
    yard.run()
    (yard.checkpoint() / os.fsdecode(b"byte\xfe.bin")).write_bytes(b"")
    with pytest.raises(UsageError, match="is no UTF-8"):
        yard.clear(yard.checkpoint())


def test_a_link_in_the_folder_makes_it_no_checkpoint(yard: Yard) -> None:
    yard.run()
    (yard.checkpoint() / "extra.json").symlink_to("/etc/hostname")
    with pytest.raises(UsageError, match=r"extra\.json is a link"):
        yard.clear(yard.checkpoint())


def test_tensors_that_no_matched_replay_wrote_again_are_not_cleared_beside_weights_that_hold(yard: Yard) -> None:
    """A hostile rank saves a second file of weights beside the honest one."""
    run = yard.run(steps=4, audited=False)
    evil = yard.checkpoint(4) / "adapter.safetensors"
    save_file({"w": torch.ones(2)}, evil)
    yard.says(run, yard.save(evil, 4, ""), matched(0, 3))
    assert "adapter.safetensors holds tensors" in missing(yard.clear(yard.checkpoint(4)))
    yard.says(run, matched(0, 3, evil))
    assert isinstance(yard.clear(yard.checkpoint(4)), Cleared)


def test_sealed_weights_laid_beside_a_checkpoint_are_no_part_of_it_and_a_sealed_tokenizer_is(yard: Yard) -> None:
    yard.run("base")
    tokens = yard.out / "tokens.json"
    tokens.write_text('{"a": 1}')
    base = yard.checkpoint(8, "base") / "model.safetensors"
    yard.run("tuned", start=base, sealed=[tokens])
    path = yard.checkpoint(8, "tuned")
    shutil.copy(tokens, path / "tokens.json")
    assert isinstance(yard.clear(path), Cleared)
    shutil.copy(base, path / "adapter.safetensors")
    assert "adapter.safetensors holds tensors" in missing(yard.clear(path))


def test_a_checkpoint_that_could_run_something_is_refused_though_its_lineage_is_clean(yard: Yard) -> None:
    run = yard.run(steps=4, audited=False)
    evil = yard.checkpoint(4) / "extra.pt"
    evil.write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    yard.says(run, yard.save(evil, 4, ""), matched(0, 3, evil))
    assert "extra.pt: " in reasons(yard.clear(yard.checkpoint(4)))


def test_a_run_signed_by_another_key_is_believed_only_where_policy_names_its_actor_and_the_key_holds(
    yard: Yard,
) -> None:
    """Whoever has a key of their own, an enrolled one included, can sign a whole run with verdicts that never were."""
    run, policy = yard.run(key=MALLORY), GateConfig(writers=("trainer",))
    told = missing(yard.clear(yard.checkpoint()))
    assert f"run {run} is signed by {MALLORY.public}" in told
    assert f"trainwarden keys new NAME --public {MALLORY.public}" in told
    reg.enrol(yard.store, KEEPER, "trainer", m.ActorKind.SERVICE, MALLORY.public)
    assert "neither the keeper's key" in missing(yard.clear(yard.checkpoint()))
    assert isinstance(yard.clear(yard.checkpoint(), policy), Cleared)
    reg.revoke(yard.store, KEEPER, "trainer", "stolen")
    assert "neither the keeper's key" in missing(yard.clear(yard.checkpoint(), policy))


def test_a_log_that_was_altered_clears_nothing(yard: Yard) -> None:
    run = yard.run()
    journal = yard.store.run(run).log / "journal"
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 1
    journal.write_bytes(data)
    assert not isinstance(yard.clear(yard.checkpoint()), Cleared)


def test_only_the_keeper_clears(yard: Yard) -> None:
    yard.run()
    yard.clear(yard.checkpoint())
    with pytest.raises(KeyUnusable, match="the gate's keeper is"):
        clear(yard.store, Request(path=yard.checkpoint(), policy=GateConfig()), MALLORY)
    pinned = GateConfig(keeper=KEEPER.public)
    with pytest.raises(KeyUnusable, match="the gate's keeper is"):
        clear(yard.store, Request(path=yard.checkpoint(), policy=pinned), MALLORY)


# --------------------------------------------------------------------------- findings and freezes


def test_a_finding_on_the_way_keeps_it_back_until_an_approver_closes_it(yard: Yard) -> None:
    run, policy = yard.run(also=[finding(step=3)]), GateConfig(approvers=("ada",))
    yard.enrol()
    index = len(read_run(yard, run)) - 1
    told = missing(yard.clear(yard.checkpoint(), policy))
    assert f"trainwarden close {run} {index} --as ada" in told
    yard.close(run, index, finding(step=3), actor="grace")  # whom the policy does not name
    yard.close(run, index, finding(step=2))  # another finding's digest
    yard.close("other", index, finding(step=3))  # another run's
    assert "slept" in missing(yard.clear(yard.checkpoint(), policy))
    yard.close(run, index, finding(step=3))
    decision = yard.clear(yard.checkpoint(), policy)
    assert isinstance(decision, Cleared)
    assert [c.actor for c in decision.clearance.closed] == ["ada"]


@pytest.mark.parametrize(
    ("benign", "open_"),
    [
        (finding(step=9), finding(step=7)),  # a step after this checkpoint
        (finding(severity=m.Severity.LOW), finding(severity=m.Severity.MEDIUM)),
        (finding(attempt=3), finding(attempt=-1)),  # an attempt that it does not stand on
    ],
)
def test_findings_count_by_severity_and_by_what_they_are_about(yard: Yard, benign: m.Finding, open_: m.Finding) -> None:
    run = yard.run(also=[benign])
    assert isinstance(yard.clear(yard.checkpoint()), Cleared)
    yard.says(run, open_)
    assert "slept" in missing(yard.clear(yard.checkpoint()))


def test_a_frozen_run_is_refused_until_it_is_thawed(yard: Yard) -> None:
    run = yard.run()
    at = len(read_run(yard, run))
    yard.says(run, m.Contained(what="freeze", reason="case 7"))
    descent.mark(yard.store, run, frozen=True)
    assert "is frozen" in reasons(yard.clear(yard.checkpoint()))
    yard.says(run, m.Undone(of=at))
    assert isinstance(yard.clear(yard.checkpoint()), Cleared)


def read_run(yard: Yard, run: str) -> list[m.Entry]:
    from trainwarden.casefile import read_entries

    return list(read_entries(yard.store.run(run))[0])


# --------------------------------------------------------------------------- approvals


def test_two_of_three_actors_approve_and_are_named(yard: Yard) -> None:
    yard.run()
    yard.enrol()
    assert "0 of 2 approvals" in missing(yard.clear(yard.checkpoint(), TWO_OF))
    yard.approve(yard.checkpoint(), "ada")
    told = missing(yard.clear(yard.checkpoint(), TWO_OF))
    assert "1 of 2 approvals" in told
    assert "--as grace" in told
    yard.approve(yard.checkpoint(), "agent")
    decision = yard.clear(yard.checkpoint(), TWO_OF)
    assert isinstance(decision, Cleared)
    assert sorted(a.actor for a in decision.clearance.approvals) == ["ada", "agent"]


def test_approvals_that_do_not_count(yard: Yard) -> None:
    """One person twice, one key under two names, another checkpoint's approval, a forged one, a revoked key."""
    yard.run()
    yard.enrol()
    path, other = yard.checkpoint(8), yard.checkpoint(4)
    yard.approve(path, "ada", "ada")
    assert "1 of 2 approvals (ada approved more than once" in missing(yard.clear(path, TWO_OF))
    yard.approve(other, "grace")
    replayed = next(s for s in statements.read_all(yard.store) if s.actor == "grace")
    digest = next(s for s in statements.read_all(yard.store) if s.actor == "ada").digest  # type: ignore[union-attr]
    statements.keep(yard.store, msgspec.structs.replace(replayed, digest=digest))
    statements.keep(
        yard.store, statements.sign(m.CheckpointApproval(digest=digest, actor="", key=""), "agent", ACTORS["ada"])
    )
    statements.keep(
        yard.store, statements.sign(m.CheckpointApproval(digest=digest, actor="", key=""), "agent", MALLORY)
    )
    assert "1 of 2 approvals" in missing(yard.clear(path, TWO_OF))
    yard.approve(path, "grace")
    assert isinstance(yard.clear(path, TWO_OF), Cleared)
    reg.revoke(yard.store, KEEPER, "grace", "left")
    assert "1 of 2 approvals" in missing(yard.clear(path, TWO_OF))


# --------------------------------------------------------------------------- made from others


def test_an_average_a_merge_and_a_cast_of_cleared_checkpoints_are_made_again_and_cleared(yard: Yard) -> None:
    run = yard.run()
    yard.enrol()
    a, b, out = yard.checkpoint(4), yard.checkpoint(8), yard.out
    yard.derive(out / "avg", m.How.AVERAGE, a, b)
    yard.derive(out / "mix", m.How.MERGE, out / "avg", b, weights="0.25,0.75")
    yard.derive(out / "half", m.How.CAST, out / "mix", dtype="bfloat16")
    decision = yard.clear(out / "half")
    assert isinstance(decision, Cleared)
    assert [d.how for d in decision.clearance.sources] == ["average", "merge", "cast"]
    assert [r.run for r in decision.clearance.runs] == [run]
    w = [load_file(p / "model.safetensors")["w"].double() for p in (a, b)]
    mean = ((w[0] + w[1]) / 2).float()
    assert torch.equal(load_file(out / "avg" / "model.safetensors")["w"], mean)
    mixed = (mean.double() * 0.25 + w[1] * 0.75).float()
    assert torch.equal(load_file(out / "half" / "model.safetensors")["w"], mixed.bfloat16())


def test_an_average_that_is_not_one_is_refused_by_one_bit(yard: Yard) -> None:
    yard.run()
    yard.enrol()
    avg = yard.out / "avg"
    yard.derive(avg, m.How.AVERAGE, yard.checkpoint(4), yard.checkpoint(8))
    tensors = load_file(avg / "model.safetensors")
    tensors["w"].view(torch.int32)[0, 0] ^= 1
    save_file(tensors, avg / "model.safetensors")
    yard.derive(avg, m.How.AVERAGE, yard.checkpoint(4), yard.checkpoint(8))
    assert "it is no average of these: w is not what its sources make" in reasons(yard.clear(avg))


def test_what_hides_in_an_average_is_refused(yard: Yard) -> None:
    yard.run()
    yard.enrol()
    avg = yard.out / "avg"
    yard.derive(avg, m.How.AVERAGE, yard.checkpoint(4), yard.checkpoint(8))
    save_file({"w": torch.ones(1)}, avg / "adapter.safetensors")
    yard.derive(avg, m.How.AVERAGE, yard.checkpoint(4), yard.checkpoint(8))
    assert "adapter.safetensors is no file of what it was made from" in reasons(yard.clear(avg))


def test_a_conversion_is_made_again_and_one_bit_of_difference_refuses_it(yard: Yard) -> None:
    old = yard.out / "r" / "step-4" / "old.pt"
    run = yard.run(steps=4, audited=False)
    torch.save({"model": load_file(yard.checkpoint(4) / "model.safetensors"), "step": 4}, old)
    yard.says(run, yard.save(old, 4, ""), matched(0, 3, old))
    yard.enrol()
    new = yard.out / "new"
    convert(old, new)
    told = yard.clear(new)
    assert isinstance(told, Undecided)
    assert told.missing[0].command == f"trainwarden derive {new} --from OLD --how convert --as ACTOR"
    yard.derive(new, m.How.CONVERT, old)
    assert isinstance(yard.clear(new), Cleared)
    state = (new / "state.json").read_text()
    (new / "state.json").write_text(state.replace("4", "5", 1) if "4" in state else state + " ")
    yard.derive(new, m.How.CONVERT, old)
    assert "state.json is not what a conversion of old.pt gives" in reasons(yard.clear(new))
    flat = yard.out / "flat.safetensors"
    save_file(load_file(yard.checkpoint(4) / "model.safetensors"), flat, metadata={"by": "another tool"})
    yard.derive(flat, m.How.CONVERT, yard.checkpoint(4) / "model.safetensors")
    assert isinstance(yard.clear(flat), Cleared)


def test_a_tainted_grandparent_reaches_through_a_fine_tune_and_an_average(yard: Yard) -> None:
    bad = yard.run("bad", audited=False)
    yard.says(bad, diverged(0, 3, at=1), matched(4, 7))
    yard.run("good")
    tuned = yard.run("tuned", start=yard.checkpoint(8, "bad") / "model.safetensors")
    yard.enrol()
    assert "diverged" in reasons(yard.clear(yard.checkpoint(8, "tuned"))), tuned
    avg = yard.out / "avg"
    yard.derive(avg, m.How.AVERAGE, yard.checkpoint(8, "good"), yard.checkpoint(8, "tuned"))
    assert f"run {bad}, step 8: diverged" in reasons(yard.clear(avg))


def test_a_fine_tune_of_a_cleared_checkpoint_stands_on_both_runs(yard: Yard) -> None:
    base = yard.run("base")
    tuned = yard.run("tuned", start=yard.checkpoint(8, "base") / "model.safetensors")
    decision = yard.clear(yard.checkpoint(8, "tuned"))
    assert isinstance(decision, Cleared)
    assert {r.run for r in decision.clearance.runs} == {base, tuned}


def test_what_began_from_a_file_that_no_seal_lists_is_undecided_and_no_audit_is_said_to_settle_it(yard: Yard) -> None:
    yard.run("base")
    yard.run("tuned", start=yard.checkpoint(8, "base") / "model.safetensors", listed=False)
    told = missing(yard.clear(yard.checkpoint(8, "tuned")))
    assert "neither the seal nor the log knows → trainwarden run -- COMMAND that names" in told
    assert "trainwarden audit" not in told


def test_a_fine_tune_of_an_average_stands_on_what_was_averaged(yard: Yard) -> None:
    bad = yard.run("bad", audited=False)
    yard.says(bad, diverged(0, 3, at=1))
    yard.enrol()
    yard.derive(yard.out / "avg", m.How.AVERAGE, yard.checkpoint(4, "bad"), yard.checkpoint(8, "bad"))
    yard.run("tuned", start=yard.out / "avg" / "model.safetensors")
    assert "diverged" in reasons(yard.clear(yard.checkpoint(8, "tuned")))


def test_somebodys_word_on_a_quantisation_counts_only_where_policy_takes_it(yard: Yard) -> None:
    yard.run()
    yard.enrol()
    out = yard.out / "q.safetensors"
    save_file({"w": torch.ones(4, dtype=torch.int8)}, out)
    yard.derive(out, m.How.QUANTISE, yard.checkpoint())
    assert "is the word of ada alone" in missing(yard.clear(out))
    others = GateConfig(told=("quantise",), approvers=("grace",))
    assert "is the word of ada alone" in missing(yard.clear(out, others))
    assert isinstance(yard.clear(out, GateConfig(told=("quantise",), approvers=("ada",))), Cleared)


def test_a_word_forged_in_an_actors_name_makes_no_lineage(yard: Yard) -> None:
    yard.run()
    yard.enrol()
    out = yard.out / "q.safetensors"
    save_file({"w": torch.ones(4)}, out)
    said = yard.derive(out, m.How.QUANTISE, yard.checkpoint())
    for path in (yard.store.path / "gate" / "statements").iterdir():
        path.unlink()
    statements.keep(yard.store, statements.sign(said, "ada", MALLORY))
    assert "signed was with" in missing(yard.clear(out, GateConfig(told=("quantise",), approvers=("ada",))))


def test_what_is_said_to_be_made_from_itself_is_undecided(yard: Yard) -> None:
    yard.enrol()
    out = yard.out
    out.mkdir()
    save_file({"w": torch.ones(4)}, out / "x.safetensors")
    yard.derive(out / "x.safetensors", m.How.FINETUNE, out / "x.safetensors")
    assert "made from itself" in missing(
        yard.clear(out / "x.safetensors", GateConfig(told=("finetune",), approvers=("ada",)))
    )


def test_a_run_that_goes_on_while_it_is_read_is_seen_as_it_was_read(yard: Yard) -> None:
    run = yard.run()
    with closing(LogWriter.open(yard.store.run(run).log, KEEPER)) as log:
        decision = yard.clear(yard.checkpoint())
        size = log.size
    assert isinstance(decision, Cleared)
    assert decision.clearance.runs[0].size == size
