"""From the bytes of a manifest to typed objects, with limits, and refusing what is not understood."""

from __future__ import annotations

import base64
import binascii
import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from hpcsh.errors import UsageError
from hpcsh.pods import spec
from hpcsh.pods.loader import documents

_T = TypeVar("_T")
_DATA = frozenset({"data", "stringData", "binaryData", "labels", "annotations"})
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*?)`(?: - at `\$\.?(?P<at>.*)`)?\Z")
_AT = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<at>.*)`)?\Z", re.S)
_SUPPORTED = "hpcsh takes a Pod, the ConfigMaps and Secrets it uses, and a List of these"


class Values(msgspec.Struct, frozen=True):
    """The keys of a ConfigMap or Secret as bytes."""

    name: str
    namespace: str
    data: Mapping[str, bytes]


class Manifest(msgspec.Struct, frozen=True):
    """One pod and what it may use, by name."""

    pod: spec.Pod
    config_maps: Mapping[str, Values]
    secrets: Mapping[str, Values]
    warnings: tuple[str, ...] = ()


def is_manifest(data: bytes) -> bool:
    """Whether a submitted file is to be read as a manifest: everything that is no script is."""
    return not data.startswith(b"#!")


def parse(data: bytes, origin: str) -> Manifest:
    """Read a manifest file. Raises `UsageError` that names the place and says what is wrong."""
    pods: list[spec.Pod] = []
    config_maps: dict[str, Values] = {}
    secrets: dict[str, Values] = {}
    for index, raw in enumerate(_objects(documents(data, origin), origin)):
        kind, where = raw["kind"], f"{origin}: {raw['kind']} {_name(raw) or f'(object {index + 1})'}"
        if kind == "Pod":
            pods.append(_convert(raw, spec.Pod, where))
        elif kind == "ConfigMap":
            _add(config_maps, _config_map(_convert(raw, spec.ConfigMap, where), where), where)
        else:
            _add(secrets, _secret(_convert(raw, spec.Secret, where), where), where)
    if len(pods) != 1:
        found = ", ".join(p.metadata.name or p.metadata.generate_name or "unnamed" for p in pods)
        raise UsageError(
            f"{origin} has {len(pods)} Pods{f' ({found})' if found else ''}; a submission takes exactly one.",
            why=_SUPPORTED,
            fix="put each Pod in a file of its own, together with the ConfigMaps and Secrets it uses",
        )
    return Manifest(pods[0], config_maps, secrets)


def _objects(docs: list[Any], origin: str) -> Iterator[dict[str, Any]]:
    for doc in docs:
        if doc is None:
            continue
        if not isinstance(doc, dict):
            raise UsageError(
                f"{origin} is neither a batch script nor a Kubernetes manifest.",
                why=f"A YAML document in it is a {type(doc).__name__}, not a mapping.",
                fix="a batch script begins with a `#!` line, a manifest has apiVersion and kind",
            )
        version, kind = doc.get("apiVersion"), doc.get("kind")
        if not version or not kind:
            raise UsageError(
                f"{origin} is no Kubernetes manifest: apiVersion or kind is missing.",
                why=_SUPPORTED,
                fix="a batch script begins with #!; a manifest has `apiVersion: v1` and `kind: Pod`",
            )
        if version == "v1" and kind in ("List", "PodList", "ConfigMapList", "SecretList"):
            items = doc.get("items") or []
            if not isinstance(items, list):
                raise UsageError(f"{origin}: items of the {kind} is no list.")
            if kind != "List":  # items of a typed list need not repeat what they are
                inner = {"apiVersion": "v1", "kind": str(kind).removesuffix("List")}
                items = [{**inner, **i} if isinstance(i, dict) else i for i in items]
            yield from _objects(items, origin)
        elif version == "v1" and kind in ("Pod", "ConfigMap", "Secret"):
            yield _without_nulls(doc)
        else:
            raise UsageError(f"{origin}: {version} {kind} is not supported.", why=_SUPPORTED)


def _without_nulls(value: Any, key: str = "") -> Any:
    """Kubernetes reads `field: null` as an absent field; in maps of data a null is an empty string."""
    if isinstance(value, dict):
        if key in _DATA:
            return value
        return {k: _without_nulls(v, str(k)) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _name(raw: Mapping[str, Any]) -> str:
    metadata = raw.get("metadata")
    if not isinstance(metadata, dict):
        return ""
    return str(metadata.get("name") or metadata.get("generateName") or "")


def _convert(raw: Any, kind: type[_T], where: str) -> _T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as e:
        raise _explained(str(e), where) from None


def _explained(message: str, where: str) -> UsageError:
    """msgspec's words, told with the path of the field as kubectl would write it."""
    unknown = _UNKNOWN.match(message)
    if unknown:
        at, name = unknown["at"] or "", unknown["field"]
        if re.search(r"volumes\[\d*\.*\]\Z|volumes\[\.\.\.\]\Z", at):
            return UsageError(
                f"{where}: {at}: volumes of kind {name} are not supported.",
                why="supported: configMap, secret, emptyDir, hostPath",
            )
        near = difflib.get_close_matches(name, _field_names(), n=1)
        path = f"{at}.{name}" if at else name
        return UsageError(
            f"{where}: unknown field {path}.",
            why="Kubernetes knows no such field, or it is not supported here.",
            fix=f"did you mean {near[0]}?" if near else "check the spelling and the indentation",
        )
    match = _AT.match(message)
    what, at = (match["what"], match["at"]) if match else (message, "")
    hint = "put the value in quotes" if "Expected `str" in what else ""
    return UsageError(f"{where}: {at or 'the object'}: {what}.", fix=hint)


def _field_names() -> list[str]:
    structs = [v for v in vars(spec).values() if isinstance(v, type) and issubclass(v, msgspec.Struct)]
    return sorted({name for s in structs for name in s.__struct_encode_fields__})


def _add(into: dict[str, Values], values: Values, where: str) -> None:
    if not values.name:
        raise UsageError(f"{where}: metadata.name is missing.")
    if values.name in into:
        raise UsageError(f"{where}: the name is there twice.")
    into[values.name] = values


_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}\Z")


def _checked(keys: dict[str, bytes], where: str) -> dict[str, bytes]:
    for key in keys:
        if not _KEY.match(key) or key in (".", "..") or key.startswith(".."):
            raise UsageError(
                f"{where}: {key!r} is no valid key.",
                why="A key consists of letters, digits, '-', '_' and '.', and does not begin with '..'.",
            )
    return keys


def _decoded(data: Mapping[str, str | None], field: str, where: str) -> dict[str, bytes]:
    out = {}
    for key, value in data.items():
        try:
            out[key] = base64.b64decode("".join((value or "").split()), validate=True)
        except (binascii.Error, ValueError):
            # The value is not repeated: it may be a secret in plain text.
            raise UsageError(
                f"{where}: {field}.{key} is not base64.", fix="use stringData for plain text"
            ) from None
    return out


def _plain(data: Mapping[str, str | None]) -> dict[str, bytes]:
    return {k: (v or "").encode("utf-8", "surrogatepass") for k, v in data.items()}


def _config_map(raw: spec.ConfigMap, where: str) -> Values:
    both = set(raw.data) & set(raw.binary_data)
    if both:
        raise UsageError(f"{where}: {', '.join(sorted(both))} is in data and in binaryData.")
    keys = {**_plain(raw.data), **_decoded(raw.binary_data, "binaryData", where)}
    return Values(raw.metadata.name, raw.metadata.namespace, _checked(keys, where))


def _secret(raw: spec.Secret, where: str) -> Values:
    keys = {**_decoded(raw.data, "data", where), **_plain(raw.string_data)}
    return Values(raw.metadata.name, raw.metadata.namespace, _checked(keys, where))
