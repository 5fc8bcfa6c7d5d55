"""Appends on the wire: what is signed is what is read, and nothing but one form is read."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainwarden.errors import LogTampered, RequestRefused, UsageError
from trainwarden.keys import SigningKey
from trainwarden.log import protocol
from trainwarden.log.protocol import (
    Append,
    Item,
    entry_bytes,
    parse_signature,
    read_append,
    read_entry,
    sign_append,
    verify_append,
)
from trainwarden.log.tiles import MAX_ENTRY, entry_bundle

KEY, OTHER = SigningKey(b"\x01" * 32), SigningKey(b"\x02" * 32)
ORIGIN = "log.test/one"
APPEND = Append(host="node-1", run="20261123-1", first=7, items=(Item(leaf=b"x"), Item(leaf=b"y", object=b"z" * 9)))


def test_a_signed_request_is_read_back_as_it_was_given() -> None:
    body, header = sign_append(APPEND, ORIGIN, KEY)
    signed = parse_signature(header)
    verify_append(signed, ORIGIN, KEY.public)
    assert read_append(body, signed) == APPEND
    assert protocol.append_url("http://h:1/", "a b/c") == "http://h:1/v1/logs/a%20b/c/append"


def test_the_signature_covers_log_host_number_size_and_body() -> None:
    body, header = sign_append(APPEND, ORIGIN, KEY)
    for changed in (
        header.replace("host=node-1", "host=node-2"),
        header.replace("first=7", "first=8"),
        header.replace(f"size={len(body)}", f"size={len(body) + 1}"),
        header[: header.index("sha256=") + 7] + "0" * 64 + header[header.index(", sig=") :],
    ):
        with pytest.raises(RequestRefused) as e:
            verify_append(parse_signature(changed), ORIGIN, KEY.public)
        assert e.value.status == 401
    for origin, key in (("log.test/two", KEY), (ORIGIN, OTHER)):
        with pytest.raises(RequestRefused):
            verify_append(parse_signature(header), origin, key.public)
    with pytest.raises(RequestRefused, match="sha256"):
        read_append(body + b"x", parse_signature(header))


@pytest.mark.parametrize("field", ["host", "first"])
def test_a_body_of_another_host_or_number_than_the_header_is_refused(field: str) -> None:
    other = msgspec.structs.replace(APPEND, **({"host": "node-2"} if field == "host" else {"first": 8}))
    body, _ = sign_append(other, ORIGIN, KEY)
    _, header = sign_append(APPEND, ORIGIN, KEY)
    digest = protocol.hashlib.sha256(body).hexdigest()
    signed = msgspec.structs.replace(parse_signature(header), sha256=digest, size=len(body))
    with pytest.raises(RequestRefused, match="node-1"):
        read_append(body, signed)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"host": "two words"}, 400),
        ({"run": ""}, 400),
        ({"run": "../up"}, 400),
        ({"first": -1}, 400),
        ({"nonce": "n" * 65}, 400),
        ({"items": (Item(leaf=b""),) * (protocol.MAX_ITEMS + 1)}, 413),
        ({"items": (Item(leaf=b"x" * (protocol.MAX_LEAF + 1)),)}, 413),
        ({"items": (Item(leaf=b"x", object=b"x" * (protocol.MAX_OBJECT + 1)),)}, 413),
        ({"items": (Item(leaf=b"x", object=b"x" * protocol.MAX_OBJECT),) * 4}, 413),
    ],
)
def test_names_numbers_and_sizes_have_bounds(change: dict[str, object], status: int) -> None:
    with pytest.raises(RequestRefused) as e:
        sign_append(msgspec.structs.replace(APPEND, **change), ORIGIN, KEY)
    assert e.value.status == status


def test_a_header_that_announces_too_much_is_refused_before_its_signature_is_looked_at() -> None:
    _, header = sign_append(APPEND, ORIGIN, KEY)
    size = parse_signature(header).size
    with pytest.raises(RequestRefused) as e:
        parse_signature(header.replace(f"size={size}", f"size={protocol.MAX_BODY + 1}"))
    assert e.value.status == 413


def test_the_largest_leaf_of_the_longest_names_fits_an_entry_bundle() -> None:
    item = Item(leaf=b"x" * protocol.MAX_LEAF, object=b"o")
    entry = entry_bytes("h" * 64, "r" * 64, protocol.MAX_SEQUENCE + protocol.MAX_ITEMS, item)
    assert len(entry) <= MAX_ENTRY
    entry_bundle([entry])
    bound, leaf = read_entry(entry)
    assert (bound.host, bound.run, leaf) == ("h" * 64, "r" * 64, item.leaf)


def test_entries_of_different_items_are_different() -> None:
    made = {
        entry_bytes(host, run, seq, Item(leaf=leaf, object=obj))
        for host in ("a", "b")
        for run in ("r", "s")
        for seq in (0, 1)
        for leaf in (b"", b"x")
        for obj in (b"", b"o")
    }
    assert len(made) == 32


@given(st.text(max_size=300))
@example("")
@example("host=a, keyid=" + "0" * 64 + ", first=00, size=1, sha256=" + "0" * 64 + ", sig=" + "A" * 86 + "==")
@example("host=a, keyid=" + "0" * 64 + ", first=1, size=1, sha256=" + "0" * 64 + ", sig=" + "A" * 85 + "B==")
@example("host=..., keyid=" + "0" * 64 + ", first=1, size=1, sha256=" + "0" * 64 + ", sig=" + "A" * 86 + "==\n")
@settings(max_examples=30, deadline=None)
def test_any_header_is_read_or_refused(header: str) -> None:
    try:
        signed = parse_signature(header)
    except RequestRefused as e:
        status = e.status
    else:
        status = 0
    if status:
        assert status in (401, 413)
        return
    with pytest.raises((RequestRefused, UsageError)):
        verify_append(signed, ORIGIN, KEY.public)


@given(st.binary(max_size=200))
@example(msgspec.msgpack.encode({"host": "a", "run": "r", "first": (1 << 64) - 1, "items": []}))
@example(msgspec.msgpack.encode({"host": "a", "run": "r", "first": 0, "items": [{"leaf": "text"}]}))
@example(b"\x81\xa4host\xa2\xff\xfe")
@example(b"\xdd\xff\xff\xff\xff")
@settings(max_examples=30, deadline=None)
def test_any_body_is_read_or_refused(body: bytes) -> None:
    _, header = sign_append(APPEND, ORIGIN, KEY)
    digest = protocol.hashlib.sha256(body).hexdigest()
    with pytest.raises(RequestRefused):
        read_append(body, msgspec.structs.replace(parse_signature(header), sha256=digest))


@given(st.binary(max_size=120))
@example(b'{"host":"a","run":"r","seq":1,"object":"" }\nx')
@example(b'{"run":"r","host":"a","seq":1,"object":""}\nx')
@example(b'{"host":"a","run":"r","seq":1,"object":""}')
@example(b"\xff\n")
@settings(max_examples=30, deadline=None)
def test_an_entry_that_no_server_wrote_is_refused(data: bytes) -> None:
    with pytest.raises(LogTampered):
        read_entry(data)
