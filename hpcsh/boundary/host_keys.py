"""Host keys against known_hosts. They are always checked and never added.

Own reading of the file and not paramiko's, because a person must be told the file and the line, and because
`@revoked` must count.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from hpcsh.errors import TargetError


class KnownKey(msgspec.Struct, frozen=True):
    """A line of known_hosts that speaks of a host."""

    file: str
    line: int
    marker: str
    kind: str
    key: bytes


def fingerprint(key: bytes) -> str:
    """As OpenSSH shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode("ascii").rstrip("=")


def known_keys(files: Sequence[str], host: str) -> list[KnownKey]:
    """The lines for `host` (`name` or `[name]:port`, lower case), in order; unreadable files are empty."""
    return [found for file in files for found in _lines(file, host)]


def _lines(file: str, host: str) -> Iterator[KnownKey]:
    try:
        text = Path(file).read_text("utf-8", "replace")
    except OSError:
        return
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#") or not _matches(words[0], host):
            continue
        try:
            key = base64.b64decode(words[2], validate=True)
        except (binascii.Error, ValueError):
            continue
        yield KnownKey(file, number, marker, words[1], key)


def _matches(patterns: str, host: str) -> bool:
    """Does the first field of a line mean this host? Hashed names, wildcards and negation are known."""
    if patterns.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(part) for part in patterns.split("|")[2:4])
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(hmac.new(salt, host.encode(), "sha1").digest(), digest)
    matched = False
    for pattern in patterns.lower().split(","):
        negated = pattern.startswith("!")
        plain = pattern.removeprefix("!").replace("[", "\0").replace("\0", "[[]")  # only * and ? are special
        if fnmatch.fnmatchcase(host, plain):
            if negated:
                return False
            matched = True
    return matched


def check(files: Sequence[str], host: str, label: str, kind: str, key: bytes) -> None:
    """Raise `TargetError` unless known_hosts has exactly this key for the host."""
    known = known_keys(files, host)
    for line in known:
        if line.marker == "@revoked" and line.key == key:
            raise TargetError(
                f"the host key of {label} is revoked", why=f"{line.file}:{line.line} says so",
                fix="ask the site's administrators",
            )  # fmt: skip
    plain = [line for line in known if not line.marker]
    if any(line.key == key for line in plain):
        return
    same = [line for line in plain if line.kind == kind]
    if same:
        raise TargetError(
            f"the host key of {label} has changed: it may be another machine than you think",
            why=f"it shows the {kind} key {fingerprint(key)}, but {same[0].file}:{same[0].line}"
            f" has {fingerprint(same[0].key)}",
            fix=f"if the site confirms the new key, remove the old one with"
            f" `ssh-keygen -R '{host}' -f {same[0].file}` and log in once with ssh",
        )
    raise TargetError(
        f"the host key of {label} is not known",
        why=f"it shows the {kind} key {fingerprint(key)}; {files[0] if files else 'known_hosts'} has none"
        f" for {host}",
        fix=f"compare it with what the site publishes, then add it: {_how_to_add(host, files)}",
    )


def _how_to_add(host: str, files: Sequence[str]) -> str:
    name, port = host, ""
    if host.startswith("["):
        name, _, number = host[1:].partition("]:")
        port = f" -p {number}"
    return f"`ssh{port} {name}` once, or `ssh-keyscan{port} {name} >> {files[0] if files else 'known_hosts'}`"
