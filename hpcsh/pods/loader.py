"""YAML documents with limits on size, depth and expansion, read the way Kubernetes reads them.

PyYAML's safe loader, stricter and nearer to kubectl: a key given twice is an error, dates and `1:30` stay
text. Limits: CVE-2019-11253 ("billion laughs").
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from hpcsh.errors import UsageError

MAX_BYTES = 4 << 20
MAX_DEPTH = 50
MAX_NODES = 200_000
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """The safe loader without YAML 1.1's dates and base-60 numbers, and with no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is not text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    number = {
        "tag:yaml.org,2002:int": re.compile(
            r"^(?:[-+]?0b[0-1_]+|[-+]?0o?[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+)$"
        ),
        "tag:yaml.org,2002:float": re.compile(
            r"^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*(?:[eE][-+]?[0-9]+)"
            r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
    }
    return {
        first: [(tag, number.get(tag, rx)) for tag, rx in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _octal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(node.value).replace("_", "")
    if text.lstrip("+-").startswith("0o"):
        return int(text.replace("0o", ""), 8)
    return int(yaml.SafeLoader.construct_yaml_int(loader, node))


def _text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    """JSON writes characters beyond U+FFFF as two escaped halves; halves alone are no text."""
    text = str(loader.construct_scalar(node))
    if not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise yaml.constructor.ConstructorError(
            None, None, "half a surrogate pair is no character", node.start_mark
        ) from None


_Loader.yaml_implicit_resolvers = _resolvers()
_Loader.add_constructor("tag:yaml.org,2002:str", _text)
_Loader.add_constructor("tag:yaml.org,2002:int", _octal)


def documents(data: bytes, origin: str) -> list[Any]:
    """Every document of a file as plain values. Raises `UsageError` with line and column."""
    if len(data) > MAX_BYTES:
        raise UsageError(f"{origin} is larger than {MAX_BYTES >> 20} MiB.", why="No manifest is.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UsageError(f"{origin} is not UTF-8 text (byte {e.start}).") from None
    try:
        _check_size(text, origin)
        return list(yaml.load_all(text, Loader=_Loader))
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(e, "problem", None) or getattr(e, "reason", None) or str(e)
        raise UsageError(f"{origin}{at} is not valid YAML: {problem}.") from None
    except (ValueError, RecursionError, OverflowError) as e:
        raise UsageError(f"{origin} is not valid YAML: {e}.") from None


def _check_size(text: str, origin: str) -> None:
    """Refuse before any value is built: the expanded size is counted on the parser's events."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        cost = 0
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise UsageError(f"{origin}: the alias *{event.anchor} stands inside what it names.")
            cost = sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            cost = 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            cost = 1
            open_nodes.append((event.anchor, total))
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = total - before
        total += cost
        if total > MAX_NODES or len(open_nodes) > MAX_DEPTH:
            limit = f"{MAX_NODES} values" if total > MAX_NODES else f"{MAX_DEPTH} levels"
            raise UsageError(f"{origin} is refused: with its aliases expanded it has more than {limit}.")
