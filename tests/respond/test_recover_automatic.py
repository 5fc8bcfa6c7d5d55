"""Recovery under policy, by itself and again and again: the end is that of an honest run, bit for bit."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from recovering import KILL, Attacked, Job, payload, settings

from trainwarden.model import Action, Diverged, Finding, Matched
from trainwarden.respond.beside import Beside

LAUNCH = Path(__file__).parents[1] / "audit" / "launch.py"
NODES = Path(__file__).with_name("nodes.py")


@pytest.mark.parametrize("ahead", [False, True], ids=["judged", "followed"])
def test_patched_and_killed_then_patched_again_unseen_it_ends_as_an_honest_run(job: Job, ahead: bool) -> None:
    hears = Attacked(job.library, [payload({5: "x = -x", 7: KILL}), payload({4: "x = 1.01 * x"})])
    chain = job.survive(hears, settings(kills=Action.RECOVER, replay=Action.RECOVER, ahead=ahead))
    assert (chain.exit_code, chain.gave_up) == (0, ""), hears.said
    assert job.state == job.honest
    first, second, third = chain.links
    assert (second.parent, second.from_step, second.cause, second.replays) == (first.run, 4, "kills", "diverged")
    assert (third.parent, third.from_step, third.cause, third.replays) == (second.run, 4, "replay", "matched")
    (told,) = [e for e in job.entries(second.run) if isinstance(e, Finding) and e.detector == "replay"]
    assert (told.step, told.ranks) == (4, (0,))


def test_what_was_replayed_beside_the_run_is_known_when_it_is_recovered(job: Job) -> None:
    hold = job.folder.parent / "hold"
    hold.touch()
    waiting = f"while os.path.exists({str(hold)!r}): time.sleep(0.02)"
    hears = Attacked(job.library, [payload({5: waiting, 7: KILL})])
    beside = Beside(
        job.store,
        ahead=True,
        make_room=job.room,
        on_verdict=lambda verdict: hold.unlink() if verdict.segment.last == 3 else None,
    )
    config = settings(verify=0, kills=Action.RECOVER)
    result = job.run(hears, config, beside=beside)
    chain = job.survive(hears, config, after=result)
    assert (chain.exit_code, chain.gave_up, job.state) == (0, "", job.honest), hears.said
    assert [e.segment.last for e in job.entries(result.run_id) if isinstance(e, Matched)][:2] == [1, 3]
    assert chain.links[1].from_step >= 4
    assert [p for p in hears.points if p.audit[0].first < 4] == [], hears.said


def test_the_launch_command_is_killed_and_its_rank_trains_on(job: Job) -> None:
    shutil.copy(LAUNCH, job.folder)
    shutil.copy(LAUNCH, job.folder.parent / "sealed")
    hears = Attacked(job.library, [payload({5: "os.kill(os.getppid(), 9); time.sleep(600)"})])
    chain = job.survive(hears, settings(verify=0, kills=Action.RECOVER), sys.executable, LAUNCH.name, "1")
    assert (chain.exit_code, job.state) == (0, job.honest), hears.said
    assert any("which outlived run" in sentence for sentence in hears.said)
    assert chain.links[1].cause == "kills"


def test_a_node_is_lost_under_torchrun(job: Job) -> None:
    shutil.copy(NODES, job.folder)
    shutil.copy(NODES, job.folder.parent / "sealed")
    lost = f'os.environ["RANK"] == "1" and (os.killpg(os.getpgid(os.getppid()), 9), {KILL})'
    hears = Attacked(job.library, [payload({5: lost})])
    chain = job.survive(hears, settings(verify=0, kills=Action.RECOVER), sys.executable, NODES.name)
    assert chain.exit_code == 0, hears.said
    first, second = chain.links
    assert (second.parent, second.from_step) == (first.run, 4)
    assert second.records == 2 * 8
    ended = job.state
    shutil.rmtree(job.out)
    job.train(str(LAUNCH), "2")
    assert ended == job.state
    assert not any(isinstance(e, Diverged) for e in job.entries(first.run))
