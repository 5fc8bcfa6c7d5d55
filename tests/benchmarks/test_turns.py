"""Two jobs that take turns: one stands still while the other makes its step."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import turns

JOB = """\
import sys, time
for step in range(1, int(sys.argv[1]) + 1):
    time.sleep(0.02)
    print("step", step, flush=True)
"""


@pytest.fixture
def side() -> Iterator[object]:
    made = []

    def make(steps: int) -> turns.Side:
        words = [sys.executable, "-c", JOB, str(steps)]
        made.append(turns.Side(lambda: subprocess.Popen(words, stdout=subprocess.PIPE, text=True), r"step (\d+)"))
        return made[-1]

    yield make
    for one in made:
        one.go_on()
        one.process.kill()
        one.process.communicate()


def state(side: turns.Side) -> str:
    return Path(f"/proc/{side.process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_side_stands_still_until_it_is_its_turn_again(side) -> None:
    one = side(200)
    one.up_to(2)
    one.stop()
    assert state(one) == "T"
    told = max(one.took)
    one.up_to(told + 5)
    assert set(range(1, told + 6)) <= set(one.took)


def test_two_sides_make_the_same_steps_and_both_end(side) -> None:
    one, other = side(8), side(8)
    turns.take_turns((one, other), 3, 8)
    assert one.process.wait() == other.process.wait() == 0
    assert len(turns.ratios(one, other, 4, 8)) == 5


def test_a_job_that_ends_too_early_is_an_error_and_the_other_goes_on(side) -> None:
    one, other = side(200), side(4)
    with pytest.raises(RuntimeError, match="did not come to step 5"):
        turns.take_turns((one, other), 2, 8)
    assert state(one) != "T"
