"""A served name under attack: no version that is not cleared answers, and the last cleared one goes on."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from gated import NAME, Gated, finding, weight

from trainwarden import descent, serving
from trainwarden.custody import ledger as custody
from trainwarden.errors import GateTampered, LogStale, NotCleared, StoreError, UsageError
from trainwarden.keys import SigningKey
from trainwarden.model import Contained, Recovered, Severity, Undone
from trainwarden.serving import Files, Service, service


def opened(gated: Gated, **settings: float | str) -> Service[float]:
    return serving.open(NAME, weight, store=gated.store.path, config=gated.configured(**settings))


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_newer_versions_are_taken_up_and_a_request_ends_on_the_one_it_began_on(gated: Gated) -> None:
    first = gated.promote(gated.checkpoint(1))
    with opened(gated) as chat:
        begun = chat.current()
        second = gated.promote(gated.checkpoint(2))
        until(lambda: chat.current().digest == second)
        assert (chat.current().model, chat.status().standby) == (2.0, (first,))
        assert (begun.digest, begun.model) == (first, 1.0)


@pytest.mark.parametrize("attack", ["poisoned", "truncated", "deleted", "retagged", "a folder"])
def test_a_newest_version_that_is_not_what_was_cleared_is_passed_over_until_it_is_back(
    gated: Gated, attack: str
) -> None:
    first, place = gated.promote(gated.checkpoint(1)), gated.checkpoint(2)
    second = gated.promote(place)
    file = place / "model.safetensors"
    good = file.read_bytes()
    match attack:
        case "poisoned":
            file.write_bytes(gated.checkpoint(3).joinpath("model.safetensors").read_bytes())
        case "truncated":
            os.truncate(file, len(good) - 1)
        case "deleted":
            file.unlink()
        case "retagged":
            file.unlink()
            file.symlink_to(gated.folder / "step-000001" / "model.safetensors")
        case _:
            file.unlink()
            file.mkdir()
    with opened(gated) as chat:
        assert (chat.current().digest, chat.current().model) == (first, 1.0)
        (over,) = chat.status().passed_over
        assert over.digest == second
        assert "model.safetensors" in over.why
        shutil.rmtree(file) if attack == "a folder" else file.unlink(missing_ok=True)
        file.write_bytes(good)
        until(lambda: chat.current().digest == second)
        assert chat.status().passed_over == ()


def test_a_poisoned_file_does_not_matter_where_the_store_has_what_was_cleared(gated: Gated) -> None:
    place = gated.checkpoint(1)
    digest = gated.promote(place, keep=True)
    shutil.rmtree(place)
    with opened(gated) as chat:
        assert (chat.current().digest, chat.current().model) == (digest, 1.0)


def test_an_incident_counts_at_the_next_request_and_is_over_when_it_is_cleared_anew(gated: Gated) -> None:
    gated.promote(gated.checkpoint(1))
    digest = gated.promote(place := gated.checkpoint(2))
    # every version here stands on one run: what is found there is against both
    with opened(gated) as chat:
        assert chat.current().model == 2.0
        gated.log(finding("after all the training", step=100), finding("of little weight", 3, Severity.LOW))
        assert chat.current().digest == digest
        index = gated.log(finding("a gradient is not what a replay gives", step=7))
        with pytest.raises(NotCleared, match=f"entry {index}, high finding replay: a gradient") as caught:
            chat.current()
        assert f"trainwarden status {NAME}" in caught.value.hint
        with gated.store_log() as head:
            gated.seen = msgspec.structs.replace(gated.seen, size=head.size, root=head.root)
        gated.promote(place)
        assert (chat.current().digest, chat.current().model) == (digest, 2.0)


def test_an_incident_on_the_newest_falls_back_to_the_older_one_at_once(gated: Gated) -> None:
    first = gated.promote(gated.checkpoint(1))
    gated.seen = msgspec.structs.replace(gated.seen, until={"0": 200})
    second = gated.promote(gated.checkpoint(2))
    with opened(gated) as chat:
        until(lambda: first in chat.status().standby)
        gated.log(finding("in a step of the second one only", step=150))
        assert chat.current().digest == first
        assert [over.digest for over in chat.status().passed_over] == [second]


def test_the_last_cleared_version_is_served_however_many_came_after_it(gated: Gated) -> None:
    """Of 120 newer versions none can be built, and then something is found against all of them."""
    first = gated.promote(gated.checkpoint(1), keep=True)
    gated.begin_run()
    gated.promote_lost(120)
    with opened(gated) as chat:
        assert chat.current().digest == first
        newest = gated.promote(gated.checkpoint(2))
        until(lambda: chat.current().digest == newest)
        gated.log(finding("against all but the first", step=3))
        assert (chat.current().digest, chat.current().model) == (first, 1.0)
        assert chat.status().passed_over[0].digest == newest
        assert len(chat.status().passed_over) < 120


def test_a_new_server_finds_the_last_cleared_version_behind_any_number_of_open_ones(gated: Gated) -> None:
    first = gated.promote(gated.checkpoint(1), keep=True)
    gated.begin_run()
    gated.promote_lost(120)
    gated.log(finding("against all but the first", step=3))
    with opened(gated) as chat:
        assert chat.current().digest == first
        gated.refuse(first)
        with pytest.raises(NotCleared, match="and 60 more"):
            chat.current()


def test_beside_the_newest_one_that_does_not_fall_with_it_is_at_hand(gated: Gated) -> None:
    """What is found against a run is against all that stands on it: the next newest would be of no help."""
    other = gated.promote(gated.checkpoint(1))
    gated.begin_run()
    for value in range(2, 8):
        newest = gated.promote(gated.checkpoint(value))
    built: list[str] = []

    def watched(files: Files) -> float:
        built.append(files.digest)
        return weight(files)

    with serving.open(NAME, watched, store=gated.store.path, config=gated.config) as chat:
        until(lambda: chat.status().standby == (other,))
        assert chat.current().digest == newest
        gated.log(finding("against all but the first", step=3))
        assert chat.current().digest == other
        assert built == [newest, other]


def test_a_request_waits_again_when_what_it_waited_for_is_found_against_meanwhile(gated: Gated) -> None:
    first = gated.promote(gated.checkpoint(1))
    gated.begin_run()
    second = gated.promote(gated.checkpoint(2))
    gated.begin_run()
    third = gated.promote(gated.checkpoint(3))

    def meanwhile(files: Files) -> float:
        if files.digest == second:
            gated.refuse(second)
        return weight(files)

    with serving.open(NAME, meanwhile, store=gated.store.path, config=gated.configured(keep=1)) as chat:
        assert chat.current().digest == third
        gated.refuse(third)
        assert (chat.current().digest, chat.current().model) == (first, 1.0)


def test_what_is_refused_or_rolled_back_is_not_handed_out_any_more(gated: Gated) -> None:
    first, second = gated.promote(gated.checkpoint(1)), gated.promote(gated.checkpoint(2))
    third = gated.promote(gated.checkpoint(3))
    with opened(gated, keep=1) as chat:
        assert chat.current().digest == third
        gated.roll_back(second, third)
        assert chat.status().digest != third, "nobody has asked for it since"
        assert chat.current().digest == second
        gated.refuse(second)
        assert (chat.current().digest, chat.current().model) == (first, 1.0)
        gated.refuse(first)
        with pytest.raises(NotCleared, match="found out"):
            chat.current()


def test_a_frozen_run_serves_nothing_until_it_is_thawed(gated: Gated) -> None:
    digest = gated.promote(gated.checkpoint(1))
    with opened(gated) as chat:
        index = gated.log(Contained(what="freeze", reason="held", by="security"))
        descent.mark(gated.store, gated.run, frozen=True)
        with pytest.raises(NotCleared, match=f"is frozen .entry {index}: held"):
            chat.current()
        gated.log(Undone(of=index, by="security"))
        descent.mark(gated.store, gated.run, frozen=False)
        assert chat.current().digest == digest


def test_a_freeze_of_the_run_that_all_comes_from_counts_though_its_mark_is_older_than_its_entry(gated: Gated) -> None:
    parent = gated.run
    gated.begin_run()
    gated.log(Recovered(from_step=0, new_run=gated.run, checkpoint=""), run=parent)
    digest = gated.promote(gated.checkpoint(1))
    with opened(gated) as chat:
        descent.mark(gated.store, parent, frozen=True)
        assert chat.current().digest == digest
        gated.log(Contained(what="freeze", reason="held", by="security"), run=parent)
        with pytest.raises(NotCleared, match=f"run {parent} is frozen"):
            chat.current()


def test_an_open_incident_on_a_run_serves_nothing_until_it_is_closed(
    gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINWARDEN_KEY", str(gated.folder / "key"))
    digest = gated.promote(gated.checkpoint(1))
    with opened(gated) as chat:
        by = custody.signer(gated.store)
        incident = custody.open_incident(gated.store, by, "case 7").id
        assert chat.current().digest == digest
        custody.add_to(gated.store, by, incident, runs=[gated.run])
        with pytest.raises(NotCleared, match=f"incident {incident} is open on run {gated.run}"):
            chat.current()
        (gated.store.path / "custody").rename(gated.folder / "away")  # as if it had never been opened
        with pytest.raises(NotCleared, match="the log of custody has 0 entries, 3 were seen"):
            chat.current()
        (gated.folder / "away").rename(gated.store.path / "custody")
        custody.close_incident(gated.store, by, incident, "a failed disk")
        assert chat.current().digest == digest


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_log_of_the_run_that_was_cut_or_removed_clears_nothing(gated: Gated, how: str) -> None:
    gated.promote(gated.checkpoint(1))
    log = gated.store.run(gated.run).log
    kept = gated.folder / "kept"
    shutil.copytree(log, kept)
    gated.log(finding("harmless", 3, Severity.LOW))
    with opened(gated) as chat:
        assert chat.current().model == 1.0
        shutil.rmtree(log)
        if how == "cut":
            shutil.copytree(kept, log)
        with pytest.raises(NotCleared, match="cannot be looked at"):
            chat.current()


# --------------------------------------------------------------------------- the gate's log


def test_a_gate_log_that_was_put_back_serves_what_was_known_and_no_new_server(gated: Gated) -> None:
    first = gated.promote(gated.checkpoint(1))
    gated.copy(gated.folder / "old")
    gated.refuse(first)
    second = gated.promote(gated.checkpoint(2))
    with opened(gated) as chat:
        assert chat.current().digest == second
        gated.put_back(gated.folder / "old")
        assert chat.current().digest == second
        assert "3 entries, 6 were seen" in chat.status().log_trouble
        with pytest.raises(GateTampered, match="3 entries, 6 were seen"):
            opened(gated)


def test_a_gate_log_of_somebody_else_is_not_believed(gated: Gated) -> None:
    digest = gated.promote(gated.checkpoint(1))
    with opened(gated) as chat:
        shutil.rmtree(gated.store.path / "gate")
        gated.key = SigningKey.load_or_create(gated.folder / "other-key")
        for value in (2, 3):
            gated.promote(gated.checkpoint(value))
        assert chat.current().digest == digest
        assert "is kept by" in chat.status().log_trouble
        with pytest.raises(GateTampered, match="is kept by"):
            opened(gated)
        with pytest.raises(GateTampered, match="is kept by"):
            opened(gated, state=str(gated.folder / "fresh"), keeper="0" * 64)


def test_without_its_log_service_goes_on_for_as_long_as_policy_has_it(
    gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = gated.promote(gated.checkpoint(1))
    log = gated.store.path / "gate" / "log"
    with opened(gated, stale_seconds=3600) as chat:
        log.rename(gated.folder / "away")
        assert chat.current().digest == digest
        assert chat.status().log_trouble
        monkeypatch.setattr(service, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 7200))
        with pytest.raises(LogStale, match="policy allows 3600 s") as caught:
            chat.current()
        assert "stale_seconds" in caught.value.hint
        (gated.folder / "away").rename(log)
        assert chat.current().digest == digest
        assert chat.status().log_trouble == ""


def test_nothing_is_served_that_was_never_promoted(gated: Gated) -> None:
    with pytest.raises(NotCleared, match="nothing was promoted"):
        opened(gated)
    gated.promote(gated.checkpoint(1), name="other")
    with pytest.raises(NotCleared, match="nothing was promoted under this name"):
        opened(gated)
    with pytest.raises(UsageError):
        serving.open("a chat", weight, store=gated.store.path, config=gated.config)
    with pytest.raises(StoreError):
        serving.open(NAME, weight, store=gated.folder / "nowhere", config=gated.config)


def test_a_server_that_cannot_keep_what_it_saw_does_not_begin(gated: Gated) -> None:
    gated.promote(gated.checkpoint(1))
    (gated.folder / "state").write_text("a file")
    with pytest.raises(UsageError, match="cannot") as caught:
        opened(gated)
    assert caught.value.hint


def test_a_version_without_its_manifest_takes_no_other_with_it(gated: Gated) -> None:
    first, second = gated.promote(gated.checkpoint(1)), gated.promote(gated.checkpoint(2))
    gated.store.object_path(second).unlink()
    with opened(gated) as chat:
        assert chat.current().digest == first
        assert "its manifest cannot be read" in chat.status().passed_over[0].why


def test_a_build_that_fails_is_passed_over_and_said(gated: Gated) -> None:
    first, second = gated.promote(gated.checkpoint(1)), gated.promote(gated.checkpoint(2))

    def picky(files: Files) -> float:
        if files.digest == second:
            raise KeyError("embed_tokens.weight")
        return weight(files)

    with serving.open(NAME, picky, store=gated.store.path, config=gated.config) as chat:
        assert chat.current().digest == first
        assert chat.status().passed_over[0].why == "KeyError: 'embed_tokens.weight'"
        assert chat.reload().digest == first


def test_while_nothing_is_served_what_failed_is_tried_again_before_long(
    gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cause that no file shows, such as too little memory: an hour is long only while something else is served."""
    first, second = gated.promote(gated.checkpoint(1)), gated.promote(gated.checkpoint(2))
    full = {second}

    def build(files: Files) -> float:
        if files.digest in full:
            raise MemoryError
        return weight(files)

    with serving.open(NAME, build, store=gated.store.path, config=gated.configured(poll_seconds=3600)) as chat:
        assert chat.current().digest == first
        full.clear()
        monkeypatch.setattr(service, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 61))
        assert chat.current().digest == first
        gated.refuse(first)
        assert chat.current().digest == second


def test_what_is_found_while_a_version_is_built_keeps_it_out(gated: Gated) -> None:
    first = gated.promote(gated.checkpoint(1))
    building, go_on = threading.Event(), threading.Event()

    def slow(files: Files) -> float:
        if files.digest != first:
            building.set()
            assert go_on.wait(60)
        return weight(files)

    with serving.open(NAME, slow, store=gated.store.path, config=gated.config) as chat:
        second = gated.promote(gated.checkpoint(2))
        until(building.is_set)
        assert chat.current().digest == first, "no request waits for a newer version"
        gated.refuse(second)
        go_on.set()
        until(lambda: bool(chat.status().passed_over))
        assert {chat.current().digest for _ in range(50)} == {first}


def test_no_request_fails_and_none_is_answered_by_what_was_not_cleared_when_it_began(gated: Gated) -> None:
    """Threads ask while versions come, are refused, poisoned and rolled back."""
    gated.promote(gated.checkpoint(0), keep=True)
    refused: dict[str, float] = {}  # digest → when its refusal was durable
    wrong: list[object] = []
    asked, done = [0] * 3, threading.Event()

    def ask(own: int, chat: Service[float]) -> None:
        while not done.is_set():
            begun = time.monotonic()
            try:
                version = chat.current()
            except Exception as e:  # noqa: BLE001  whatever it is, a request failed
                wrong.append(e)
                return
            if refused.get(version.digest, begun) < begun or values[version.digest] != version.model:
                wrong.append(version)
            asked[own] += 1

    values: dict[str, float] = {}
    with opened(gated) as chat:
        values[chat.current().digest] = 0.0
        threads = [threading.Thread(target=ask, args=(own, chat)) for own in range(3)]
        for thread in threads:
            thread.start()
        for value in range(1, 16):
            place = gated.checkpoint(value)
            if value % 5 == 0:
                digest = gated.promote(place)
                (place / "model.safetensors").write_bytes(b"poison")
                values[digest] = -1.0
                continue
            values[manifest_of(place)] = float(value)
            digest = gated.promote(place)
            if value % 3:
                gated.refuse(digest)
                refused[digest] = time.monotonic()
        before = sum(asked)
        until(lambda: sum(asked) > before + 100)
        done.set()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert sum(asked) > 100
        assert values[chat.reload().digest] == 12.0


def manifest_of(place: Path) -> str:
    from trainwarden.gate import manifest

    return manifest.manifest_digest(manifest.manifest_of(place))
