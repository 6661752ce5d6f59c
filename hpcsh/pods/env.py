"""A container's environment, command and args, by Kubernetes' rules.

Sources: https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/
and .../define-command-argument-container/. Values that come from a Secret, or contain one, are marked, so
that they are kept out of argv, plans and listings (design 6.5).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from hpcsh.errors import UsageError
from hpcsh.pods.manifest import Values
from hpcsh.pods.resources import container_resource
from hpcsh.pods.spec import Container, EnvFrom, EnvVar, KeyRef, Pod, SourceRef, ValueFrom

MAX_STRING = 131072 - 64
"""The kernel's limit of one argv or environment string (MAX_ARG_STRLEN), less what a prefix may take."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]\Z")


class Text(msgspec.Struct, frozen=True):
    """A resolved string, and whether it holds a secret."""

    value: str
    secret: bool = False


class Scope(msgspec.Struct, frozen=True):
    """What the values of a container may refer to."""

    pod: Pod
    name: str
    namespace: str
    uid: str
    config_maps: Mapping[str, Values]
    secrets: Mapping[str, Values]
    where: str


def expand(text: str, known: Mapping[str, Text]) -> Text:
    """Replace `$(NAME)` where NAME is known; `$$` is a dollar sign; everything else stays as it is.

    The same results as k8s.io/kubernetes/third_party/forked/golang/expansion.
    """
    out: list[str] = []
    secret = False
    at = 0
    while (dollar := text.find("$", at)) >= 0 and dollar + 1 < len(text):
        out.append(text[at:dollar])
        following = text[dollar + 1]
        close = text.find(")", dollar) if following == "(" else -1
        if following == "$":
            out.append("$")
            at = dollar + 2
        elif close > 0:
            found = known.get(text[dollar + 2 : close])
            out.append(found.value if found else text[dollar : close + 1])
            secret = secret or bool(found and found.secret)
            at = close + 1
        else:
            out.append(text[dollar : dollar + 2])
            at = dollar + 2
    out.append(text[at:])
    return Text("".join(out), secret)


def expand_all(words: Sequence[str], known: Mapping[str, Text]) -> tuple[Text, ...]:
    """`expand` for each word."""
    return tuple(expand(word, known) for word in words)


def environment(container: Container, scope: Scope) -> tuple[dict[str, Text], list[str]]:
    """The variables of a container in order, and warnings. Later ones win; `env` wins over `envFrom`."""
    known: dict[str, Text] = {}
    warnings: list[str] = []
    for source in container.env_from:
        for name, value in _all_of(source, scope):
            if NAME.match(name):
                known[name] = value
            else:
                warnings.append(f"{scope.where}: envFrom: the key {name!r} is no variable name: left out")
    for variable in container.env:
        _check_name(variable.name, scope)
        resolved = _value(variable, container, scope, known)
        if resolved is not None:
            known[variable.name] = resolved
    for name, text in known.items():
        check_text(text.value, f"{scope.where}: env {name}")
    return known, warnings


def check_text(value: str, where: str) -> None:
    """Refuse what no process can be given: a NUL, or more than the kernel takes."""
    if "\0" in value:
        raise UsageError(f"{where} contains a NUL character.", why="No program can receive one.")
    size = len(value.encode("utf-8", "surrogatepass"))
    if size > MAX_STRING:
        raise UsageError(
            f"{where} has {size} bytes.",
            why=f"Linux hands at most {MAX_STRING} bytes to a program in one string.",
            fix="put it into a ConfigMap or Secret and mount it as a file",
        )


def _check_name(name: str, scope: Scope) -> None:
    if not NAME.match(name):
        raise UsageError(
            f"{scope.where}: env name {name!r} cannot be passed on.",
            why="A variable's name consists of letters, digits and '_', and does not begin with a digit.",
        )


def _value(variable: EnvVar, container: Container, scope: Scope, known: Mapping[str, Text]) -> Text | None:
    where = f"{scope.where}: env {variable.name}"
    if variable.value_from is None:
        return expand(variable.value or "", known)
    if variable.value:
        raise UsageError(f"{where} has both value and valueFrom.")
    return _from(variable.value_from, container, scope, where)


def _from(source: ValueFrom, container: Container, scope: Scope, where: str) -> Text | None:
    given = [f for f in source.__struct_fields__ if getattr(source, f) is not None]
    if len(given) != 1:
        raise UsageError(f"{where}: valueFrom needs exactly one source.")
    if source.config_map_key_ref:
        return _key(scope.config_maps, source.config_map_key_ref, "ConfigMap", scope, where, secret=False)
    if source.secret_key_ref:
        return _key(scope.secrets, source.secret_key_ref, "Secret", scope, where, secret=True)
    if source.field_ref:
        return Text(field(source.field_ref.field_path, scope, where))
    if source.resource_field_ref:
        ref = source.resource_field_ref
        of = _container(ref.container_name, container, scope, where)
        return Text(container_resource(of, ref.resource, ref.divisor, where))
    raise UsageError(f"{where}: valueFrom.fileKeyRef is not supported.")


def _container(name: str, own: Container, scope: Scope, where: str) -> Container:
    for candidate in (*scope.pod.spec.containers, *scope.pod.spec.init_containers):
        if candidate.name == name:
            return candidate
    if name:
        raise UsageError(f"{where}: there is no container {name!r}.")
    return own


def _key(
    sources: Mapping[str, Values], ref: KeyRef, kind: str, scope: Scope, where: str, *, secret: bool
) -> Text | None:
    values = lookup(sources, ref.name, kind, scope, where, optional=ref.optional)
    if values is None:
        return None
    if ref.key not in values.data:
        if ref.optional:
            return None
        known = ", ".join(sorted(values.data)) or "none"
        raise UsageError(f"{where}: {kind} {ref.name} has no key {ref.key!r}.", why=f"Its keys: {known}")
    return Text(_text(values.data[ref.key], f"{where}: {kind} {ref.name} key {ref.key}"), secret)


def lookup(
    sources: Mapping[str, Values], name: str, kind: str, scope: Scope, where: str, *, optional: bool
) -> Values | None:
    """A ConfigMap or Secret of the same file and namespace; None when it is optional and not there."""
    values = sources.get(name)
    if values is not None and (values.namespace or "default") != scope.namespace:
        raise UsageError(
            f"{where}: {kind} {name} is in namespace {values.namespace or 'default'}, "
            f"the pod in {scope.namespace}."
        )
    if values is None and not optional:
        known = ", ".join(sorted(sources)) or "none"
        raise UsageError(
            f"{where}: there is no {kind} {name!r} in this file.",
            why=f"{kind}s in it: {known}. There is no Kubernetes behind this engine to ask.",
            fix=f"add the {kind} to the file, separated by a line ---",
        )
    return values


def _all_of(source: EnvFrom, scope: Scope) -> list[tuple[str, Text]]:
    where = f"{scope.where}: envFrom"
    if (source.config_map_ref is None) == (source.secret_ref is None):
        raise UsageError(f"{where} needs exactly one of configMapRef and secretRef.")
    secret = source.secret_ref is not None
    ref = source.secret_ref or source.config_map_ref or SourceRef(name="")
    kind = "Secret" if secret else "ConfigMap"
    sources = scope.secrets if secret else scope.config_maps
    values = lookup(sources, ref.name, kind, scope, where, optional=ref.optional)
    keys = values.data if values else {}
    return [
        (source.prefix + key, Text(_text(data, f"{where}: {kind} {ref.name} key {key}"), secret))
        for key, data in sorted(keys.items())
    ]


def _text(data: bytes, where: str) -> str:
    """Bytes that are not UTF-8 are passed on as they are (design 6.4: byte-exact)."""
    return data.decode("utf-8", "surrogateescape")


def field(path: str, scope: Scope, where: str) -> str:
    """The value of a fieldRef that is known before the job runs."""
    metadata = scope.pod.metadata
    simple = {
        "metadata.name": scope.name,
        "metadata.namespace": scope.namespace,
        "metadata.uid": scope.uid,
        "spec.serviceAccountName": scope.pod.spec.service_account_name or "default",
    }
    if path in simple:
        return simple[path]
    subscript = _SUBSCRIPT.match(path)
    if subscript:
        source = metadata.labels if subscript[1] == "labels" else metadata.annotations
        return source.get(subscript[2]) or ""
    raise UsageError(
        f"{where}: fieldRef {path!r} is not supported.",
        why=f"Supported: {', '.join(simple)}, metadata.labels['KEY'], metadata.annotations['KEY']. "
        "Node and addresses are not known before the job runs.",
    )
