"""Kubernetes asks whether a pod may be made; the answer is yes only if its models are cleared and promoted. Pure.

Rules (https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/)
-----
* A pod names its models in the annotation `trainwarden/models`: `VOLUME=NAME@DIGEST`, separated by commas. Each digest
  must be what may be served as NAME now, with nothing against it.
* Every volume that can bring files from outside of the pod is named there, unless it is one that never holds a model
  (`ignored`). A named volume exists, and every container mounts it read-only.
* A change of a pod is judged only if it changes something of that.
* What is not understood is refused: another kind of review, no pod in it, a malformed annotation, a volume of a kind
  that is not known here. An error on the way is a refusal too.

Trust: the API server, for what it asks. A volume may hold something else than it is named to: the server in the pod
verifies what it reads (`trainwarden.serving`), this keeps pods away that could not serve anything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias

import msgspec

from trainwarden.errors import TrainWardenError

ANNOTATION = "trainwarden/models"
INSIDE = frozenset({"configMap", "secret", "emptyDir", "downwardAPI", "projected"})  # made by the cluster, or empty
_MOST = 64  # models of a pod
_CONTAINERS = ("containers", "initContainers", "ephemeralContainers")

Served: TypeAlias = Mapping[str, tuple[str, ...]]
"""What may be served under a name: digest → what is against it."""
Lookup: TypeAlias = Callable[[str], Served]


class Denied(Exception):
    """The pod may not be made; the message says why, and what to do."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a pod: the volume that it lies on, and what it is said to be."""

    volume: str
    name: str
    digest: str


def review(asked: object, served: Lookup, ignored: Collection[str] = ()) -> dict[str, Any]:
    """The `AdmissionReview` that answers the one in `asked`; `served` tells what may be served under a name."""
    uid = ""
    try:
        request = _object(_object(asked, "the review").get("request"), "request")
        uid = request["uid"] if isinstance(request.get("uid"), str) else ""
        _check_kind(asked, uid)
        pod = _pod(request)
        if request.get("operation") == "UPDATE" and _about_models(pod) == _about_models(
            _object(request.get("oldObject"), "the pod as it was")
        ):
            return _answer(uid, allowed=True, message="nothing about its models changed")
        return _answer(uid, allowed=True, message=admit(pod, served, ignored))
    except Denied as e:
        return _answer(uid, allowed=False, message=f"TrainWarden: {e}")
    except TrainWardenError as e:
        return _answer(uid, allowed=False, message=f"TrainWarden cannot tell what is cleared: {e}")


def admit(pod: Mapping[str, Any], served: Lookup, ignored: Collection[str] = ()) -> str:
    """Check a pod; say what it was admitted with.

    Raises:
        Denied: it may not be made.
        TrainWardenError: what may be served cannot be known.
    """
    metadata, spec = _object(pod.get("metadata", {}), "metadata"), _object(pod.get("spec"), "spec")
    models = list(models_of(metadata))
    volumes = {_text(v.get("name"), "a volume's name"): v for v in _objects(spec, "volumes")}
    if len(volumes) != len(_objects(spec, "volumes")):
        raise Denied("two of its volumes have one name")
    for model in models:
        _check_volume(model, volumes, spec)
        _check_served(model, served(model.name))
    named = {model.volume for model in models} | set(ignored)
    for name, volume in volumes.items():
        kinds = volume.keys() - {"name"}
        if name not in named and not kinds <= INSIDE:
            raise Denied(
                f"the volume {name!r} ({', '.join(sorted(kinds))}) may hold a model, and the annotation {ANNOTATION} "
                f"does not say which: {name}=NAME@DIGEST"
            )
    return ", ".join(f"{model.name} {model.digest[:12]}" for model in models) or "no volume that can hold a model"


def models_of(metadata: Mapping[str, Any]) -> Iterator[Model]:
    """The models that the annotation names.

    Raises:
        Denied: it is malformed, or names a volume twice.
    """
    annotations = _object(metadata.get("annotations") or {}, "annotations")
    written = _text(annotations.get(ANNOTATION, ""), ANNOTATION)
    parts = [part.strip() for part in written.split(",")] if written.strip() else []
    if len(parts) > _MOST:
        raise Denied(f"{ANNOTATION} names {len(parts)} models, at most {_MOST} are looked at")
    seen: set[str] = set()
    for part in parts:
        volume, _, model = part.partition("=")
        name, _, digest = model.rpartition("@")
        if not volume or not name or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise Denied(f"{ANNOTATION} has {part[:120]!r}, which is not VOLUME=NAME@DIGEST with a digest of 64 digits")
        if volume in seen:
            raise Denied(f"{ANNOTATION} names the volume {volume!r} twice")
        seen.add(volume)
        yield Model(volume=volume, name=name, digest=digest)


def _check_served(model: Model, found: Served) -> None:
    against = found.get(model.digest)
    if against is None:
        now = next((digest for digest, against in found.items() if not against), "nothing")
        raise Denied(f"{model.digest} is not promoted as {model.name}, which is {now} now")
    if against:
        raise Denied(f"{model.name} {model.digest[:12]} may not be served: {'; '.join(against)}")


def _check_volume(model: Model, volumes: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    if model.volume not in volumes:
        raise Denied(f"{ANNOTATION} names the volume {model.volume!r}, which the pod does not have")
    for kind in _CONTAINERS:
        for container in _objects(spec, kind):
            who = _text(container.get("name"), "a container's name")
            for mount in _objects(container, "volumeMounts"):
                if mount.get("name") == model.volume and mount.get("readOnly") is not True:
                    raise Denied(f"the container {who!r} could write to the model's volume {model.volume!r}: readOnly")
            for device in _objects(container, "volumeDevices"):
                if device.get("name") == model.volume:
                    raise Denied(f"the container {who!r} has the model's volume {model.volume!r} as a device")


def _pod(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The pod that is asked about, to be made or changed."""
    resource, part = _object(request.get("resource"), "resource"), request.get("subResource") or ""
    if resource != {"group": "", "version": "v1", "resource": "pods"} or part not in ("", "ephemeralcontainers"):
        raise Denied(f"this webhook judges pods, not {resource} {part!r}: see its rules")
    if request.get("operation") not in ("CREATE", "UPDATE"):
        raise Denied(f"the operation {request.get('operation')!r} is not judged here: see the webhook's rules")
    return _object(request.get("object"), "the pod")


def _about_models(pod: Mapping[str, Any]) -> object:
    """All of a pod that `admit` looks at. A pod that is there goes on: what its model became known for since is for
    the server in it, and nobody could end a pod whose every change is refused."""
    metadata, spec = _object(pod.get("metadata", {}), "metadata"), _object(pod.get("spec"), "spec")
    annotation = _object(metadata.get("annotations") or {}, "annotations").get(ANNOTATION)
    containers = [
        [(c.get("name"), c.get("volumeMounts"), c.get("volumeDevices")) for c in _objects(spec, kind)]
        for kind in _CONTAINERS
    ]
    return annotation, _objects(spec, "volumes"), containers


def _check_kind(asked: object, uid: str) -> None:
    told = _object(asked, "the review")
    kind = told.get("apiVersion"), told.get("kind")
    if kind != ("admission.k8s.io/v1", "AdmissionReview") or not uid:
        raise Denied(f"{kind} is not an AdmissionReview of admission.k8s.io/v1 with a uid")


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Denied(f"{what} is not an object")
    return value


def _objects(holder: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = holder.get(key)
    if found is not None and not isinstance(found, list):
        raise Denied(f"{key} is not a list")
    return [_object(each, f"one of {key}") for each in found or ()]


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise Denied(f"{what} is not a text")
    return value


def _answer(uid: str, *, allowed: bool, message: str) -> dict[str, Any]:
    status = {"message": message[:2000]} | ({} if allowed else {"code": 403, "reason": "Forbidden"})
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {"uid": uid, "allowed": allowed, "status": status},
    }
