"""What a pod asks of Slurm: cpus and memory summed, init containers by Kubernetes' rule, GPUs.

Rule: the request of a pod is the larger of the sum over its containers and the largest of its init
containers (https://kubernetes.io/docs/concepts/workloads/pods/init-containers/#resource-sharing-within-containers).
A limit counts where there is one, else the request.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import msgspec

from hpcsh.errors import UsageError
from hpcsh.pods import quantity
from hpcsh.pods.spec import Container, PodSpec

DEFAULT_MEMORY = 1 << 30
"""Memory of a container that says nothing, in bytes, unless the profile or the flags say something."""
GPUS = {"nvidia.com/gpu": "nvidia", "amd.com/gpu": "amd"}
_NO_EFFECT = ("ephemeral-storage",)


class Demand(msgspec.Struct, frozen=True):
    """A pod's demand. `cpus` and `memory` are None where no container says anything."""

    cpus: int | None
    memory: int | None
    gpus: int
    cpu_silent: tuple[str, ...]
    memory_silent: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def demand(spec: PodSpec, where: str) -> Demand:
    """Sum up a pod. Containers that say nothing are named in `*_silent`; the caller decides on defaults."""
    warnings: list[str] = []
    for container in (*spec.init_containers, *spec.containers):
        warnings += _check(container, where)
    cpus = _total(spec, "cpu", where)
    memory = _total(spec, "memory", where)
    return Demand(
        cpus=None if cpus is None else max(1, quantity.ceil(cpus)),
        memory=None if memory is None else quantity.ceil(memory),
        gpus=_gpus(spec, where),
        cpu_silent=_silent(spec.containers, "cpu", where),
        memory_silent=_silent(spec.containers, "memory", where),
        warnings=tuple(warnings),
    )


def _amount(container: Container, resource: str, where: str) -> Fraction | None:
    """A container's limit, else its request; zero says nothing (Kubernetes reads it as no limit)."""
    for kind in ("limits", "requests"):
        value = getattr(container.resources, kind).get(resource)
        if value is not None:
            number = quantity.parse(value, f"{where}: container {container.name}: {kind}.{resource}")
            if number:
                return number
    return None


def _total(spec: PodSpec, resource: str, where: str) -> Fraction | None:
    running = [a for c in spec.containers if (a := _amount(c, resource, where)) is not None]
    first = [a for c in spec.init_containers if (a := _amount(c, resource, where)) is not None]
    if not running and not first:
        return None
    return max(sum(running, Fraction(0)), max(first, default=Fraction(0)))


def _silent(containers: Sequence[Container], resource: str, where: str) -> tuple[str, ...]:
    return tuple(c.name for c in containers if _amount(c, resource, where) is None)


def gpu_kind(container: Container, where: str) -> str:
    """ "nvidia", "amd" or "": which kind of GPU a container asks for."""
    kinds = [kind for name, kind in GPUS.items() if _amount(container, name, where)]
    if len(kinds) > 1:
        raise UsageError(f"{where}: container {container.name} asks for nvidia and amd GPUs at once.")
    return kinds[0] if kinds else ""


def _gpus(spec: PodSpec, where: str) -> int:
    def count(container: Container) -> int:
        amounts = [_amount(container, name, where) or Fraction(0) for name in GPUS]
        if any(a.denominator != 1 for a in amounts):
            raise UsageError(f"{where}: container {container.name} asks for a part of a GPU.")
        return int(sum(amounts))

    kinds = {gpu_kind(c, where) for c in (*spec.containers, *spec.init_containers)} - {""}
    if len(kinds) > 1:
        raise UsageError(f"{where} asks for nvidia and amd GPUs at once; a job is given one kind.")
    return max(sum(map(count, spec.containers)), max(map(count, spec.init_containers), default=0))


def _check(container: Container, where: str) -> list[str]:
    """Refuse resources that nothing here stands for; warn of those that are not enforced."""
    warnings = []
    at = f"{where}: container {container.name}"
    names = {**container.resources.limits, **container.resources.requests}
    for name in names:
        if name in _NO_EFFECT:
            warnings.append(f"{at}: {name} has no effect here")
        elif name not in ("cpu", "memory", *GPUS):
            raise UsageError(
                f"{at}: the resource {name!r} is not supported.",
                why=f"Supported: cpu, memory, {', '.join(GPUS)}",
                fix="ask Slurm for it with the annotation slurm-job.vk.io/flags: --gres=…",
            )
    if container.resources.claims:
        raise UsageError(f"{at}: resources.claims is not supported.")
    for resource in ("cpu", "memory"):
        limit, request = (getattr(container.resources, k).get(resource) for k in ("limits", "requests"))
        if limit is not None and request is not None:
            bound, asked = quantity.parse(limit, at), quantity.parse(request, at)
            if bound and asked > bound:
                raise UsageError(f"{at}: requests.{resource} {request} is more than the limit {limit}.")
    return warnings


def container_resource(container: Container, resource: str, divisor: str | int, where: str) -> str:
    """The value of a resourceFieldRef: the amount divided by `divisor` (0 means 1), rounded up."""
    kind, _, name = resource.partition(".")
    if kind not in ("limits", "requests") or name not in ("cpu", "memory"):
        raise UsageError(
            f"{where}: resourceFieldRef {resource!r} is not supported.",
            why="Supported: limits.cpu, limits.memory, requests.cpu, requests.memory",
        )
    value = getattr(container.resources, kind).get(name)
    if value is None:
        raise UsageError(f"{where}: container {container.name} has no {resource}.")
    unit = quantity.parse(divisor, f"{where}: divisor") or Fraction(1)
    return str(quantity.ceil(quantity.parse(value, where) / unit))
