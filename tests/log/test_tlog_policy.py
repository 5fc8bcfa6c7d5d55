"""Policies: the specification's example decides as it says, and no line that is not understood weakens one."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainwarden.errors import UsageError
from trainwarden.keys import SigningKey
from trainwarden.log.cosignature import Enough, TooFew, cosign
from trainwarden.log.notes import sign_head
from trainwarden.log.policy import judge, k_of, parse_policy
from trainwarden.log.vkeys import COSIGNATURE, VerifierKey

LOG = SigningKey(b"\x01" * 32)
NAMES = ("X1", "X2", "X3", "Y1", "Y2", "Y3")
KEYS = {name: SigningKey(bytes([i]) * 32) for i, name in enumerate(NAMES, 10)}
VKEYS = {name: VerifierKey(f"w/{name}", key.public, COSIGNATURE) for name, key in KEYS.items()}
HEAD = sign_head("log", 1, bytes(32), LOG).note
TEXT = HEAD.partition("\n\n")[0] + "\n"
LOG_KEY = VerifierKey("log", LOG.public).text
EXAMPLE = f"""\
# the example of c2sp.org/tlog-policy
log {LOG_KEY} https://log.example/

witness X1 {VKEYS["X1"].text}
witness X2 {VKEYS["X2"].text}\thttps://x2.example
  witness X3 {VKEYS["X3"].text}
group X-witnesses 2 X1 X2 X3

witness Y1 {VKEYS["Y1"].text}
witness Y2 {VKEYS["Y2"].text}
witness Y3 {VKEYS["Y3"].text}
group Y-witnesses any Y1 Y2 Y3

group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""


def test_the_published_example_decides_as_it_says() -> None:
    policy = parse_policy(EXAMPLE.encode())
    assert policy.urls == {LOG.public: "https://log.example/", VKEYS["X2"].public: "https://x2.example"}
    lines = {name: cosign(TEXT, f"w/{name}", key, 9) for name, key in KEYS.items()}
    for number in range(len(NAMES) + 1):
        for there in combinations(NAMES, number):
            answer = judge(policy, (HEAD + "".join(lines[name] for name in there)).encode())
            met = sum(name[0] == "X" for name in there) >= 2 and any(name[0] == "Y" for name in there)
            assert isinstance(answer, Enough if met else TooFew)
            assert answer is not None
            assert answer.needed == 3
            assert len(answer.cosignatures) == number


def test_a_quorum_of_none_is_no_answer() -> None:
    assert judge(parse_policy(b"quorum none\n"), HEAD.encode()) is None


def test_k_of_n() -> None:
    policy = k_of(list(VKEYS.values()), 2)
    lines = [cosign(TEXT, f"w/{name}", KEYS[name], 9) for name in ("X1", "Y3")]
    assert isinstance(judge(policy, (HEAD + "".join(lines)).encode()), Enough)
    assert isinstance(judge(policy, (HEAD + lines[0]).encode()), TooFew)
    for k in (0, 7):
        with pytest.raises(UsageError, match="cannot be demanded"):
            k_of(list(VKEYS.values()), k)
    with pytest.raises(UsageError, match="named twice"):
        k_of([VKEYS["X1"], VKEYS["X1"]], 1)


W = f"witness a {VKEYS['X1'].text}\n"
B = f"witness b {VKEYS['X2'].text}\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        W,
        "quorum a\n",
        "quorum none\nquorum none\n",
        W + "quorum a b\n",
        W + "group g 2 a\nquorum g\n",
        W + "group g 0 a\nquorum g\n",
        W + "group g 01 a\nquorum g\n",
        W + "group g -1 a\nquorum g\n",
        W + "group g some a\nquorum g\n",
        W + "group g any\nquorum g\n",
        W + "group g any none\nquorum g\n",
        W + "group g any a a\nquorum g\n",
        W + "group g any g\nquorum g\n",
        W + B + "group g any a\ngroup h any a b\nquorum h\n",
        W + W + "quorum a\n",
        W + W.replace(" a ", " b ") + "quorum a\n",
        W + B.replace(" b ", " a ") + "quorum a\n",
        W.replace(" a ", " none ") + "quorum none\n",
        W.replace(VKEYS["X1"].text, LOG_KEY) + "quorum a\n",
        f"log {VKEYS['X1'].text}\nquorum none\n",
        f"log {LOG_KEY}\nlog {LOG_KEY}\nquorum none\n",
        "wittness a b\nquorum none\n",
        "quorum none\r\n",
        "quorum none\x00\n",
        W + "quorum a # enough\n",
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_policy(text.encode())


def test_nesting_has_an_end() -> None:
    groups = "".join(f"group g{i} any {f'g{i - 1}' if i else 'a'}\n" for i in range(300))
    with pytest.raises(UsageError, match="more than 256"):
        parse_policy((W + groups + "quorum g299\n").encode())
    deepest = "\n".join(groups.splitlines()[:256])
    policy = parse_policy((W + deepest + "\nquorum g255\n").encode())
    assert isinstance(judge(policy, HEAD.encode()), TooFew)
    with pytest.raises(UsageError, match="at most"):
        parse_policy(b"#" * (256 * 1024 + 1))


WORDS = st.sampled_from(["witness", "group", "quorum", "log", "any", "all", "a", "b", "none", "1", "\n", " ", "\xff"])


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.lists(WORDS, max_size=30).map(lambda w: " ".join(w).encode("latin-1"))))
@example(b"quorum \xff")
def test_any_bytes_are_a_policy_or_refused_in_one_way(data: bytes) -> None:
    try:
        policy = parse_policy(data)
    except UsageError:
        return
    assert judge(policy, HEAD.encode()) is None or policy.quorum != "none"
