"""Resent, reordered and contradicting requests: each item is logged once, under one index."""

from __future__ import annotations

import random

import msgspec
import pytest

from benchmarks.log_crashes import Faults, Server, new_index, read_log, request, running
from trainwarden.errors import RequestRefused
from trainwarden.log.protocol import Append, Appended, entry_bytes
from trainwarden.log.server import sequencer


def ok(answer: Appended | RequestRefused) -> Appended:
    assert isinstance(answer, Appended), answer
    return answer


def refused(answer: Appended | RequestRefused) -> RequestRefused:
    assert isinstance(answer, RequestRefused)
    return answer


@pytest.fixture
def files() -> dict[str, bytes]:
    return {}


@pytest.fixture
def server(files: dict[str, bytes]):  # type: ignore[no-untyped-def]
    with running(files, new_index(), Faults()) as made:
        yield made


def test_a_request_sent_again_gets_the_same_indexes_and_no_second_entry(server: Server, files) -> None:  # type: ignore[no-untyped-def]
    first = ok(server.send(request("a", "r", 0, 5))[0])
    assert (first.indexes, first.acknowledged) == ((0, 1, 2, 3, 4), 5)
    again = ok(server.send(request("a", "r", 0, 5))[0])
    assert again == first
    overlap = ok(server.send(request("a", "r", 3, 4))[0])
    assert (overlap.indexes, overlap.acknowledged) == ((3, 4, 5, 6), 7)
    assert len(read_log(files)) == 7


def test_the_same_request_twice_in_one_group_is_logged_once(server: Server, files) -> None:  # type: ignore[no-untyped-def]
    one, two = server.send(request("a", "r", 0, 3), request("a", "r", 0, 3))
    assert ok(one) == ok(two)
    assert len(read_log(files)) == 3


def test_another_item_under_a_known_number_is_a_conflict_that_names_both(server: Server, files) -> None:  # type: ignore[no-untyped-def]
    ok(server.send(request("a", "r", 0, 3))[0])
    for group in ([request("a", "r", 2, 3, "!")], [request("a", "r", 3, 1), request("a", "r", 3, 1, "!")]):
        answer = refused(server.send(*group)[-1])
        assert answer.status == 409
        assert answer.logged in str(answer)
        assert answer.given in str(answer)
        assert answer.logged != answer.given
    assert len(read_log(files)) == 4, "nothing of a refused request was logged"


def test_a_changed_object_alone_is_a_conflict(server: Server) -> None:
    append = request("a", "r", 0, 1)
    ok(server.send(append)[0])
    item = msgspec.structs.replace(append.items[0], object=b"another")
    answer = refused(server.send(msgspec.structs.replace(append, items=(item,)))[0])
    assert answer.logged


def test_a_gap_is_answered_with_the_number_expected(server: Server, files) -> None:  # type: ignore[no-untyped-def]
    ok(server.send(request("a", "r", 0, 2))[0])
    answer = refused(server.send(request("a", "r", 3, 1))[0])
    assert (answer.status, answer.expected) == (409, 2)
    assert len(read_log(files)) == 2


def test_a_request_without_items_asks_how_far_the_server_has_come(server: Server) -> None:
    ok(server.send(request("a", "r", 0, 2))[0])
    answer = ok(server.send(Append(host="a", run="r", first=99, items=()))[0])
    assert (answer.indexes, answer.acknowledged) == ((), 2)


def test_runs_and_hosts_are_numbered_apart(server: Server) -> None:
    answers = server.send(request("a", "r", 0, 1), request("a", "s", 0, 1), request("b", "r", 0, 1))
    assert [ok(a).indexes for a in answers] == [(0,), (1,), (2,)]


@pytest.mark.parametrize("seed", range(6))
def test_whatever_order_requests_come_in_every_item_is_logged_once_and_in_order(seed: int, files) -> None:  # type: ignore[no-untyped-def]
    draw = random.Random(seed)
    wanted = [request(host, "r", first, 3) for host in "abc" for first in range(0, 30, 3)]
    with running(files, new_index(), Faults()) as server:
        seen: dict[tuple[str, int], int] = {}
        left = list(wanted)
        for _ in range(2000):
            if not left:
                break
            group = draw.choices(wanted, k=draw.randrange(1, 6))
            for append, answer in zip(group, server.send(*group), strict=True):
                if isinstance(answer, Appended):
                    left = [a for a in left if a is not append]
                    for seq, index in enumerate(answer.indexes, append.first):
                        assert seen.setdefault((append.host, seq), index) == index
    assert left == []
    entries = read_log(files)
    assert len(entries) == 90
    for append in wanted:
        for seq, item in enumerate(append.items, append.first):
            assert entries[seen[(append.host, seq)]] == entry_bytes(append.host, "r", seq, item)
    for host in "abc":
        indexes = [seen[(host, seq)] for seq in range(30)]
        assert indexes == sorted(indexes)


def test_a_full_queue_refuses_at_once_and_takes_requests_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencer, "MAX_WAITING", 2)
    first = [server.sequencer.submit(request("a", "r", i, 1), 1) for i in range(2)]
    with pytest.raises(RequestRefused, match="2 requests") as e:
        server.sequencer.submit(request("a", "r", 2, 1), 1)
    assert e.value.status == 429
    server.sequencer.step()
    assert [f.result(timeout=0).indexes for f in first] == [(0,), (1,)]
    assert ok(server.send(request("a", "r", 2, 1))[0]).indexes == (2,)


def test_a_queue_full_of_bytes_refuses_but_one_large_request_always_fits(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequencer, "MAX_WAITING_BYTES", 100)
    server.sequencer.submit(request("a", "r", 0, 1), 1000)
    with pytest.raises(RequestRefused, match="1000 bytes"):
        server.sequencer.submit(request("a", "r", 1, 1), 1)
    server.sequencer.step()
    server.sequencer.submit(request("a", "r", 1, 1), 1)


def test_a_group_is_bounded_and_the_rest_waits_for_the_next(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencer, "MAX_GROUP_ITEMS", 2)
    waiting = [server.sequencer.submit(request("a", "r", i, 1), 1) for i in range(5)]
    assert [server.sequencer.step() for _ in range(3)] == [2, 2, 1]
    assert [f.result(timeout=0).indexes[0] for f in waiting] == [0, 1, 2, 3, 4]


def test_a_stopped_server_commits_what_waits_and_takes_no_more(server: Server) -> None:
    waiting = server.sequencer.submit(request("a", "r", 0, 1), 1)
    server.sequencer.start()
    server.sequencer.close()
    assert waiting.result(timeout=0).indexes == (0,)
    with pytest.raises(RequestRefused, match="stopping") as e:
        server.sequencer.submit(request("a", "r", 1, 1), 1)
    assert e.value.status == 503


def test_a_defect_while_a_batch_is_committed_acknowledges_nothing_and_the_thread_lives(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as m:
        m.setattr(server.log, "append", lambda *_: 1 / 0)
        assert "ZeroDivisionError" in str(refused(server.send(request("a", "r", 0, 1))[0]))
    assert ok(server.send(request("a", "r", 0, 1))[0]).indexes == (0,)
