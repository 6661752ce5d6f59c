"""What of a pod cannot be done here (refused by name) and what has no effect (told in a warning)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from hpcsh.errors import UsageError
from hpcsh.pods.spec import Container, Pod

_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?\Z")
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*\Z")
RESTART_POLICIES = ("Always", "OnFailure", "Never")
PULL_POLICIES = ("", "Always", "IfNotPresent", "Never")
_MAX_SECONDS = 2**31 - 1

_POD_EFFECTIVE = frozenset({
    "containers", "initContainers", "volumes", "restartPolicy", "terminationGracePeriodSeconds",
    "activeDeadlineSeconds", "serviceAccountName", "hostNetwork",
})  # fmt: skip
_CONTAINER_EFFECTIVE = frozenset({
    "name", "image", "imagePullPolicy", "command", "args", "workingDir", "env", "envFrom", "volumeMounts",
    "resources", "restartPolicy", "securityContext",
})  # fmt: skip
_SCHEDULING = frozenset({
    "affinity", "nodeSelector", "tolerations", "schedulerName", "priority", "priorityClassName",
    "preemptionPolicy", "topologySpreadConstraints", "enableServiceLinks", "automountServiceAccountToken",
    "serviceAccount", "serviceAccountName", "dnsPolicy", "terminationMessagePath", "terminationMessagePolicy",
})  # fmt: skip
"""They steer a Kubernetes, not the program; where there is none they are told of in one short line."""
_REFUSED = {
    "ephemeralContainers": "containers cannot be added to a running pod",
    "resourceClaims": "there is no dynamic resource allocation; ask Slurm with --gres",
    "volumeDevices": "raw block devices are not possible for an ordinary user",
    "schedulingGates": "the pod would never start",
    "restartPolicyRules": "only restartPolicy is supported",
}


def check(pod: Pod, where: str) -> list[str]:
    """Refuse what cannot be done, return warnings of what has no effect."""
    _names(pod, where)
    _policies(pod, where)
    _lifecycles(pod, where)
    return _no_effect(pod, where)


def _names(pod: Pod, where: str) -> None:
    name = pod.metadata.name or pod.metadata.generate_name
    if not name or not _SUBDOMAIN.match(name.rstrip("-.")) or len(name) > 253:
        raise UsageError(
            f"{where}: metadata.name {name!r} is no valid name.",
            why="At most 253 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit.",
        )
    if pod.metadata.namespace and not _LABEL.match(pod.metadata.namespace):
        raise UsageError(f"{where}: metadata.namespace {pod.metadata.namespace!r} is no valid name.")
    if not pod.spec.containers:
        raise UsageError(f"{where}: spec.containers is empty.")
    containers = [*pod.spec.init_containers, *pod.spec.containers]
    _labels([c.name for c in containers], "container", where)
    _labels([v.name for v in pod.spec.volumes], "volume", where)
    for container in containers:
        if not container.image.strip():
            raise UsageError(f"{where}: container {container.name} has no image.")


def _labels(names: list[str], what: str, where: str) -> None:
    for name in names:
        if not _LABEL.match(name):
            raise UsageError(
                f"{where}: {what} name {name!r} is not valid.",
                why="At most 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit.",
            )
        if names.count(name) > 1:
            raise UsageError(f"{where}: two {what}s are called {name!r}.")


def _policies(pod: Pod, where: str) -> None:
    spec = pod.spec
    if spec.restart_policy not in ("", *RESTART_POLICIES):
        raise UsageError(
            f"{where}: restartPolicy {spec.restart_policy!r} is unknown.",
            why=f"Known: {', '.join(RESTART_POLICIES)}",
        )
    for container in (*spec.init_containers, *spec.containers):
        at = f"{where}: container {container.name}"
        if container.restart_policy:
            raise UsageError(
                f"{at}: restartPolicy of a single container is not supported yet.",
                why="Init containers that go on running (sidecars) would need it.",
                fix="put it among the containers; they all start together",
            )
        if container.image_pull_policy not in PULL_POLICIES:
            raise UsageError(f"{at}: imagePullPolicy {container.image_pull_policy!r} is unknown.")
    if not 0 <= spec.termination_grace_period_seconds <= _MAX_SECONDS:
        raise UsageError(f"{where}: terminationGracePeriodSeconds is out of range.")
    deadline = spec.active_deadline_seconds
    if deadline is not None and not 1 <= deadline <= _MAX_SECONDS:
        raise UsageError(f"{where}: activeDeadlineSeconds is out of range.")


def _lifecycles(pod: Pod, where: str) -> None:
    """A hook does work; leaving it out would change what the pod does. preStop only tidies up."""
    for container in (*pod.spec.init_containers, *pod.spec.containers):
        if isinstance(container.lifecycle, dict) and container.lifecycle.get("postStart"):
            raise UsageError(
                f"{where}: container {container.name}: lifecycle.postStart is not supported yet.",
                fix="do its work at the beginning of the container's command",
            )


def _given(struct: msgspec.Struct, effective: Iterable[str]) -> list[str]:
    """Names of the fields that are said and have no effect, as Kubernetes spells them."""
    pairs = zip(struct.__struct_fields__, struct.__struct_encode_fields__, strict=True)
    values: list[tuple[str, Any]] = [(name, getattr(struct, field)) for field, name in pairs]
    said = [name for name, value in values if value not in (None, "", (), False, [], {})]
    return [name for name in said if name not in effective]


def _no_effect(pod: Pod, where: str) -> list[str]:
    quiet: list[str] = []
    warnings: list[str] = []
    groups = [("spec", _given(pod.spec, _POD_EFFECTIVE))]
    for container in (*pod.spec.init_containers, *pod.spec.containers):
        names = _given(container, _CONTAINER_EFFECTIVE)
        groups.append((f"container {container.name}", names + _security(container)))
    for at, names in groups:
        for name in names:
            if name in _REFUSED:
                raise UsageError(f"{where}: {at}: {name} is not supported: {_REFUSED[name]}.")
            if name in _SCHEDULING:
                quiet.append(name)
            else:
                warnings.append(f"{where}: {at}: {name} has no effect here")
    if quiet:
        warnings.append(f"{where}: no effect without a Kubernetes: {', '.join(dict.fromkeys(quiet))}")
    return warnings


def _security(container: Container) -> list[str]:
    """A container runs as the user of the job; what it asks beyond that it does not get."""
    asked = container.security_context or {}
    return [f"securityContext.{k}" for k, v in asked.items() if k != "readOnlyRootFilesystem" and v]
