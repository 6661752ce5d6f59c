"""Image references: what a user may write, and what it means.

Grammar: https://pkg.go.dev/github.com/distribution/reference; the prefix rule is interLink's (contract
virtual_node 3.6): a prefix is put before a reference that has no scheme and is no absolute path.
"""

from __future__ import annotations

import hashlib
import posixpath
import re

import msgspec

from hpcsh.errors import UsageError

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):(?P<rest>.*)\Z", re.S)
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REMOTE = re.compile(
    rf"(?:(?P<host>{_HOST}(?::[0-9]{{1,5}})?)/)?(?P<name>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?\Z"
)
_ARCHIVES = ("docker-archive", "oci-archive")
_UNSUPPORTED = (
    "oras",
    "library",
    "shub",
    "oci",
    "docker-daemon",
    "instance",
    "http",
    "https",
    "containers-storage",
)
_SUPPORTED = (
    "docker://REGISTRY/NAME:TAG, docker-archive:PATH, oci-archive:PATH, or the absolute path of a file"
)


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """A checked reference. `kind` is "docker", "file", "docker-archive" or "oci-archive".

    A "file" is looked at on the target: a SIF, a directory with a root file system, or an archive.
    """

    kind: str
    registry: str = ""
    repository: str = ""
    tag: str = ""
    digest: str = ""
    path: str = ""

    @property
    def canonical(self) -> str:
        """One spelling for each image; what `images` shows."""
        if self.kind == "docker":
            tag = f":{self.tag}" if self.tag else ""
            digest = f"@{self.digest}" if self.digest else ""
            return f"docker://{self.registry}/{self.repository}{tag}{digest}"
        return self.path if self.kind == "file" else f"{self.kind}:{self.path}"

    @property
    def slug(self) -> str:
        """The beginning of the image's file names in the pool, unique for the reference."""
        base = self.canonical.removeprefix("docker://").removeprefix("docker.io/library/")
        words = re.sub(r"[^A-Za-z0-9._-]+", "_", base.split("@")[0]).strip("._-")[-60:]
        return f"{words or 'image'}-{hashlib.sha256(self.canonical.encode()).hexdigest()[:6]}"

    @property
    def short(self) -> str:
        """A name for people: the last part, without tag and suffix."""
        last = posixpath.basename(self.repository or self.path).split(".")[0].lower()
        return re.sub(r"[^a-z0-9-]+", "-", last).strip("-") or "image"


def prefixed(text: str, *, prefix: str = "", image_root: str = "") -> str:
    """The reference with interLink's prefix rule applied; an annotation's image-root counts more."""
    text = text.strip()
    root = image_root or prefix
    if not root or text.startswith(("/", "~")) or re.match(r"[a-zA-Z][a-zA-Z0-9+\-.]*://", text):
        return text
    if any(text.startswith(f"{kind}:") for kind in _ARCHIVES):
        return text
    if "://" in root or root.endswith("/"):
        return root + text
    return f"{root}/{text}"


def parse(text: str, *, home: str = "") -> Reference:
    """Check a reference. `home` stands for a leading `~`. Raises `UsageError` that says what is possible."""
    if not text or any(ord(c) <= 32 or ord(c) == 127 for c in text) or text.startswith("-"):
        raise UsageError(f"{text!r} is no image reference.", why=f"Possible: {_SUPPORTED}")
    if home and (text == "~" or text.startswith("~/")):
        text = home + text[1:]
    if text.startswith("/"):
        return Reference(kind="file", path=_path(text))
    scheme = _SCHEME.match(text)
    name, rest = (scheme[1].lower(), scheme["rest"]) if scheme else ("", "")
    if name == "docker" and rest.startswith("//"):
        return _remote(rest[2:], text)
    if name in _ARCHIVES:
        path = home + rest[1:] if home and rest.startswith("~/") else rest
        return Reference(kind=name, path=_path(path.removeprefix("//") if path.startswith("///") else path))
    if name in _UNSUPPORTED and (rest.startswith("/") or not re.match(r"[A-Za-z0-9_.-]+\Z", rest)):
        raise UsageError(f"{name}: images are not supported: {text}", why=f"Possible: {_SUPPORTED}")
    if "://" in text:
        raise UsageError(f"{text!r} has an unknown scheme.", why=f"Possible: {_SUPPORTED}")
    if text.startswith((".", "~")) or text.endswith((".sif", ".tar", ".img")):
        raise UsageError(
            f"{text!r} is a relative path.",
            why="Images are looked for on the cluster, where this directory may not exist.",
            fix="give the absolute path on the cluster",
        )
    return _remote(text, text)


def _path(path: str) -> str:
    if not path.startswith("/"):
        raise UsageError(f"{path!r} is not an absolute path.", fix="give the absolute path on the cluster")
    return posixpath.normpath(path)


def _remote(text: str, whole: str) -> Reference:
    """`registry/name:tag@digest`; the first part is a registry when it looks like a host (docker's rule)."""
    first, slash, rest = text.partition("/")
    if slash and not ("." in first or ":" in first or first == "localhost" or first.startswith("[")):
        match = _REMOTE.match(f"docker.io/{text}")
    elif slash:
        match = _REMOTE.match(text)
    else:
        match = _REMOTE.match(f"docker.io/library/{text}")
    if match is None or not match["host"]:
        hint = "names of images are lower case" if rest != rest.lower() or text != text.lower() else ""
        raise UsageError(f"{whole!r} is no image reference.", why=f"Possible: {_SUPPORTED}", fix=hint)
    host, name = match["host"], match["name"]
    if host in ("docker.io", "index.docker.io") and "/" not in name:
        name = f"library/{name}"
    return Reference(
        kind="docker",
        registry="docker.io" if host == "index.docker.io" else host,
        repository=name,
        tag=match["tag"] or ("" if match["digest"] else "latest"),
        digest=match["digest"] or "",
    )
