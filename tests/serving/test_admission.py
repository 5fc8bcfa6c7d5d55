"""The admission webhook over recorded reviews: what a cluster may run, and everything else."""

from __future__ import annotations

import copy
import json
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gated import NAME, Gated
from starlette.testclient import TestClient

from trainwarden.errors import GateTampered
from trainwarden.serving import admission
from trainwarden.serving.admission_app import MOST_BODY, Lookup, application

REVIEWS = Path(__file__).parent / "reviews"
GOOD, OPEN, OTHER = "a" * 64, "b" * 64, "c" * 64


def recorded(name: str, digest: str = GOOD) -> dict[str, Any]:
    text = (REVIEWS / f"{name}.json").read_text(encoding="utf-8")
    return dict(json.loads(text.replace("DIGEST", digest)))


def served(name: str) -> dict[str, tuple[str, ...]]:
    return {GOOD: (), OPEN: ("entry 9 says so",)} if name == NAME else {}


def answer(asked: object, *ignored: str) -> tuple[bool, str]:
    told = admission.review(asked, served, ignored)
    assert (told["apiVersion"], told["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response = told["response"]
    if isinstance(asked, dict) and isinstance(asked.get("request"), dict):
        assert response["uid"] == asked["request"]["uid"]
    assert ("code" in response["status"]) != response["allowed"]
    return response["allowed"], response["status"]["message"]


def test_a_pod_whose_model_is_cleared_and_promoted_is_admitted() -> None:
    assert answer(recorded("pod-create")) == (True, f"chat {GOOD[:12]}")


@pytest.mark.parametrize(
    ("digest", "why"),
    [
        (OTHER, f"{OTHER} is not promoted as chat, which is {GOOD} now"),
        (OPEN, "entry 9 says so"),
        ("latest", "not VOLUME=NAME@DIGEST"),
        (GOOD.upper(), "not VOLUME=NAME@DIGEST"),
        (GOOD + f",weights=chat@{GOOD}", "twice"),
        (GOOD + f",elsewhere=chat@{GOOD}", "which the pod does not have"),
        (GOOD + ",", "not VOLUME=NAME@DIGEST"),
    ],
)
def test_a_pod_whose_annotation_names_something_else_is_not(digest: str, why: str) -> None:
    allowed, said = answer(recorded("pod-create", digest))
    assert not allowed
    assert why in said


def changed(change: Callable[[dict[str, Any]], object], name: str = "pod-create") -> dict[str, Any]:
    asked = recorded(name)
    change(asked["request"]["object"])
    return asked


def source(kind: str, **more: object) -> Callable[[dict[str, Any]], object]:
    return lambda pod: pod["spec"]["volumes"].append({"name": "more", kind: more})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda pod: pod["metadata"].pop("annotations"), "may hold a model"),
        (lambda pod: pod["metadata"].update(annotations={}), "may hold a model"),
        (lambda pod: pod["metadata"].update(annotations={admission.ANNOTATION: 5}), "is not a text"),
        (lambda pod: pod["metadata"].update(annotations=[]), None),
        (source("persistentVolumeClaim", claimName="x"), "may hold a model"),
        (source("hostPath", path="/models"), "may hold a model"),
        (source("image", reference="registry.example/model@sha256:0"), "may hold a model"),
        (source("csi", driver="x"), "may hold a model"),
        (source("ephemeral", volumeClaimTemplate={}), "may hold a model"),
        (source("aKindOfTheFuture"), "may hold a model"),
        (lambda pod: pod["spec"]["volumes"].append({"name": "weights", "emptyDir": {}}), "one name"),
        (lambda pod: pod["spec"]["containers"][0]["volumeMounts"][0].pop("readOnly"), "could write"),
        (lambda pod: pod["spec"]["containers"][0]["volumeMounts"][0].update(readOnly="true"), "could write"),
        (
            lambda pod: pod["spec"].update(
                initContainers=[{"name": "fetch", "volumeMounts": [{"name": "weights", "mountPath": "/w"}]}]
            ),
            "'fetch' could write",
        ),
        (
            lambda pod: pod["spec"]["containers"][0].update(volumeDevices=[{"name": "weights", "devicePath": "/d"}]),
            "as a device",
        ),
        (lambda pod: pod["spec"].update(volumes="none"), "is not a list"),
        (lambda pod: pod["spec"].update(containers=[5]), "is not an object"),
        (lambda pod: pod.pop("spec"), "is not an object"),
    ],
)
def test_a_pod_that_could_bring_another_model_is_not_admitted(
    change: Callable[[dict[str, Any]], object], why: str | None
) -> None:
    allowed, said = answer(changed(change))
    assert not allowed
    assert why is None or why in said


def test_a_pod_without_outside_files_and_a_volume_that_is_said_to_be_none_are_admitted() -> None:
    def no_model(pod: dict[str, Any]) -> None:
        del pod["metadata"]["annotations"]
        del pod["spec"]["volumes"][0], pod["spec"]["containers"][0]["volumeMounts"][0]

    assert answer(changed(no_model))[0]
    assert answer(changed(source("persistentVolumeClaim", claimName="logs")), "more")[0]


def test_a_pod_that_is_there_can_end_whatever_became_of_its_model_and_take_no_other() -> None:
    assert answer(recorded("pod-update", OPEN))[0], "its finalizer may go"
    asked = recorded("pod-update", OPEN)
    asked["request"]["oldObject"]["metadata"]["annotations"][admission.ANNOTATION] = f"weights=chat@{GOOD}"
    assert not answer(asked)[0]
    asked = recorded("pod-update")
    del asked["request"]["oldObject"]
    assert not answer(asked)[0]


def test_a_debug_container_cannot_write_to_a_model() -> None:
    allowed, said = answer(recorded("pod-debug"))
    assert not allowed
    assert "'debugger-lq7w9' could write" in said
    asked = recorded("pod-debug")
    asked["request"]["object"]["spec"]["ephemeralContainers"][0]["volumeMounts"][0]["readOnly"] = True
    assert answer(asked)[0]


def test_what_is_not_understood_is_refused() -> None:
    def other(**more: object) -> dict[str, Any]:
        asked = recorded("pod-create")
        asked["request"].update(more)
        return asked

    for asked in (
        None,
        [],
        {},
        {"request": {"uid": "x"}},
        recorded("pod-create") | {"apiVersion": "admission.k8s.io/v1beta1"},
        recorded("pod-create") | {"kind": "Pod"},
        other(operation="CONNECT"),
        other(operation=None),
        other(subResource="exec"),
        other(resource={"group": "apps", "version": "v1", "resource": "deployments"}),
        other(resource=None),
        other(object=None),
    ):
        assert not answer(copy.deepcopy(asked))[0], asked


def test_what_cannot_be_looked_up_is_refused() -> None:
    def broken(name: str) -> dict[str, tuple[str, ...]]:
        raise GateTampered("the gate's log was cut")

    told = admission.review(recorded("pod-create"), broken)
    assert told["response"]["allowed"] is False
    assert "the gate's log was cut" in told["response"]["status"]["message"]


def test_the_webhook_follows_the_gate_and_fails_closed(gated: Gated) -> None:
    first = gated.promote(gated.checkpoint(1))
    with TestClient(application(Lookup(gated.store, gated.config)), raise_server_exceptions=False) as client:

        def asked(digest: str) -> tuple[bool, str]:
            told = client.post("/validate", json=recorded("pod-create", digest)).json()["response"]
            return told["allowed"], told["status"]["message"]

        assert asked(first)[0]
        second = gated.promote(gated.checkpoint(2))
        assert asked(second)[0]
        gated.refuse(second)
        assert (asked(first)[0], asked(second)[0]) == (True, False)
        for content in (b"{", b"", b"\xff", b"[" * 100_000, b" " * (MOST_BODY + 1)):
            assert client.post("/validate", content=content).status_code >= 400
        (gated.store.path / "gate").rename(gated.folder / "away")
        allowed, said = asked(first)
        assert not allowed
        assert "cannot tell what is cleared" in said


def test_the_verb_answers_over_tls_and_says_what_is_wrong_with_its_certificate(gated: Gated) -> None:
    import httpx

    digest = gated.promote(gated.checkpoint(1))
    gated.write_config()
    certificate, key = gated.folder / "tls.crt", gated.folder / "tls.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    verb = [sys.executable, "-m", "trainwarden.cli", "admission", "--store", gated.store.path, "--port", "0", "--json"]
    tls = ["--tls-certificate", certificate, "--tls-key", key]
    wrong = subprocess.run(
        [*verb, *tls[:3], certificate], cwd=gated.folder, capture_output=True, text=True, timeout=120
    )
    assert wrong.returncode == 3
    assert "cannot use the certificate" in wrong.stderr
    process = subprocess.Popen([*verb, *tls], cwd=gated.folder, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        url = json.loads(process.stdout.readline())["url"]
        trusted = ssl.create_default_context(cafile=certificate)
        told = httpx.post(f"{url}/validate", json=recorded("pod-create", digest), verify=trusted, timeout=60).json()
        assert told["response"]["allowed"] is True
    finally:
        process.terminate()
        process.wait(60)
