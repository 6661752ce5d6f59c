"""Volumes: the files and directories they become beside the script, and where containers see them.

Layout relative to the job's directory (contract virtual_node 3.1): `configMaps/<volume>/<path>`,
`secrets/<volume>/<path>`, `emptyDirs/<volume>`, and `local/memory/<volume>` for `medium: Memory`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence

import msgspec

from hpcsh.errors import UsageError
from hpcsh.pods.env import Scope, Text, check_text, expand, lookup
from hpcsh.pods.manifest import Values
from hpcsh.pods.spec import ConfigMapVolume, Container, SecretVolume, Volume, VolumeMount

HOST_PATH_TYPES = (
    "", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice",
)  # fmt: skip

_KINDS = ("config_map", "secret", "empty_dir", "host_path")


class PodFile(msgspec.Struct, frozen=True):
    """A file of the pod; `path` is relative to the job's directory."""

    path: str
    data: bytes
    mode: int = 0o600
    secret: bool = False


class Mount(msgspec.Struct, frozen=True):
    """A bind mount. A relative `source` counts from the job's directory."""

    source: str
    target: str
    read_only: bool = False


class HostPathCheck(msgspec.Struct, frozen=True):
    """What the node must have, or be given, before the pod starts."""

    volume: str
    type: str
    path: str


class Volumes(msgspec.Struct, frozen=True):
    """All volumes of a pod. `sources` is each volume's path, relative ones count from the job's directory."""

    sources: Mapping[str, str]
    read_only: frozenset[str]
    files: tuple[PodFile, ...]
    directories: tuple[str, ...]
    host_paths: tuple[HostPathCheck, ...]
    warnings: tuple[str, ...]

    @property
    def file_paths(self) -> frozenset[str]:
        """Relative paths of all files."""
        return frozenset(f.path for f in self.files)


def materialise(volumes: Sequence[Volume], scope: Scope) -> Volumes:
    """Turn volumes into files, directories and checks. Raises `UsageError` that names the volume."""
    sources: dict[str, str] = {}
    read_only: set[str] = set()
    files: list[PodFile] = []
    directories: list[str] = []
    checks: list[HostPathCheck] = []
    warnings: list[str] = []
    for volume in volumes:
        where = f"{scope.where}: volume {volume.name}"
        if volume.name in sources:
            raise UsageError(f"{where}: the name is there twice.")
        kinds = [k for k in _KINDS if getattr(volume, k) is not None]
        if len(kinds) > 1:
            raise UsageError(f"{where} has several kinds: {', '.join(kinds)}.")
        if volume.host_path is not None:
            check = _host_path(volume, where)
            checks.append(check)
            sources[volume.name] = check.path
            continue
        if volume.config_map is not None or volume.secret is not None:
            source, made = _files(volume, scope, where)
            files += made
            read_only.add(volume.name)
        else:
            source, notes = _empty_dir(volume, where)
            warnings += notes
        sources[volume.name] = source
        directories.append(source)
    return Volumes(
        sources, frozenset(read_only), tuple(files), tuple(directories), tuple(checks), tuple(warnings)
    )


def _empty_dir(volume: Volume, where: str) -> tuple[str, list[str]]:
    medium = volume.empty_dir.medium if volume.empty_dir else ""
    if medium not in ("", "Memory"):
        raise UsageError(f"{where}: emptyDir medium {medium!r} is not supported.", why="Supported: Memory")
    limited = volume.empty_dir and volume.empty_dir.size_limit
    warnings = [f"{where}: sizeLimit is not enforced"] if limited else []
    return (f"local/memory/{volume.name}" if medium else f"emptyDirs/{volume.name}"), warnings


def _host_path(volume: Volume, where: str) -> HostPathCheck:
    source = volume.host_path
    assert source is not None
    check_path(source.path, f"{where}: hostPath")
    if source.type not in HOST_PATH_TYPES:
        known = ", ".join(t for t in HOST_PATH_TYPES if t)
        raise UsageError(f"{where}: hostPath type {source.type!r} is unknown.", why=f"Types: {known}")
    return HostPathCheck(volume.name, source.type, posixpath.normpath(source.path))


def check_path(path: str, where: str) -> None:
    """Refuse a path that is not absolute, or holds what no mount can express."""
    if not path.startswith("/"):
        raise UsageError(f"{where}: {path!r} is not an absolute path.")
    if any(ord(c) < 32 or ord(c) == 127 for c in path) or ".." in path.split("/"):
        raise UsageError(f"{where}: {path!r} has '..' or control characters in it.")


def relative_path(path: str, where: str) -> str:
    """A relative path without '..', normalised; raises `UsageError` otherwise."""
    if not path or path.startswith("/") or ".." in path.split("/") or any(ord(c) < 32 for c in path):
        raise UsageError(f"{where}: {path!r} is no relative path without '..'.")
    return posixpath.normpath(path)


def _files(volume: Volume, scope: Scope, where: str) -> tuple[str, list[PodFile]]:
    """The files of a ConfigMap or Secret volume, and their directory."""
    secret = volume.secret is not None
    source: ConfigMapVolume | SecretVolume | None = volume.secret or volume.config_map
    assert source is not None
    name = source.secret_name if isinstance(source, SecretVolume) else source.name
    kind, directory = ("Secret", "secrets") if secret else ("ConfigMap", "configMaps")
    known = scope.secrets if secret else scope.config_maps
    base = f"{directory}/{volume.name}"
    values = lookup(known, name, kind, scope, where, optional=source.optional)
    if values is None:
        return base, []
    made = []
    for key, path, mode in _items(source, values, kind, where):
        # A secret's file is for its owner alone, whatever the manifest says: the directory is shared storage.
        bits = mode & 0o700 if secret else mode
        made.append(PodFile(f"{base}/{path}", values.data[key], bits, secret))
    return base, made


def _items(
    source: ConfigMapVolume | SecretVolume, values: Values, kind: str, where: str
) -> list[tuple[str, str, int]]:
    if not source.items:
        return [(key, key, _mode(source.default_mode, where)) for key in sorted(values.data)]
    out = []
    for item in source.items:
        if item.key not in values.data:
            if source.optional:
                continue
            raise UsageError(
                f"{where}: {kind} {values.name} has no key {item.key!r}.",
                why=f"Its keys: {', '.join(sorted(values.data)) or 'none'}",
            )
        mode = source.default_mode if item.mode is None else item.mode
        out.append((item.key, relative_path(item.path, f"{where}: items"), _mode(mode, where)))
    paths = [path for _, path, _ in out]
    for path in paths:
        if paths.count(path) > 1 or any(other.startswith(f"{path}/") for other in paths):
            raise UsageError(f"{where}: items: two keys want the path {path!r}.")
    return out


def _mode(mode: int, where: str) -> int:
    if not 0 <= mode <= 0o777:
        raise UsageError(f"{where}: the mode {mode} is out of range.", fix="write it in octal, as in 0644")
    return mode


def mounts(
    container: Container, volumes: Volumes, env: Mapping[str, Text], where: str
) -> tuple[tuple[Mount, ...], tuple[str, ...], list[str]]:
    """A container's mounts, outer ones first whatever their order; directories to make; warnings."""
    found: dict[str, Mount] = {}
    directories: list[str] = []
    warnings: list[str] = []
    for mount in container.volume_mounts:
        at = f"{where}: volumeMount {mount.name}"
        if mount.name not in volumes.sources:
            known = ", ".join(volumes.sources) or "none"
            raise UsageError(f"{at}: there is no such volume.", why=f"Volumes of this pod: {known}")
        check_path(mount.mount_path, f"{at}: mountPath")
        target = posixpath.normpath(mount.mount_path)
        if target in found or target == "/" or ":" in target:
            problem = "is used twice" if target in found else "cannot be mounted on"
            raise UsageError(f"{at}: mountPath {mount.mount_path!r} {problem}.")
        warnings += _propagation(mount, at)
        source, made = _source(mount, volumes, env, at)
        directories += made
        found[target] = Mount(source, target, mount.read_only or mount.name in volumes.read_only)
    ordered = tuple(sorted(found.values(), key=lambda m: m.target.split("/")))
    return ordered, tuple(directories), warnings


def _propagation(mount: VolumeMount, where: str) -> list[str]:
    if mount.mount_propagation == "Bidirectional":
        raise UsageError(f"{where}: mountPropagation Bidirectional is not possible for an ordinary user.")
    warnings = []
    if mount.mount_propagation not in ("", "None"):
        warnings.append(f"{where}: mountPropagation {mount.mount_propagation} has no effect here")
    if mount.recursive_read_only not in (None, "Disabled"):
        warnings.append(f"{where}: recursiveReadOnly has no effect here")
    return warnings


def _source(
    mount: VolumeMount, volumes: Volumes, env: Mapping[str, Text], where: str
) -> tuple[str, list[str]]:
    source = volumes.sources[mount.name]
    if mount.sub_path and mount.sub_path_expr:
        raise UsageError(f"{where} has both subPath and subPathExpr.")
    sub = mount.sub_path
    if mount.sub_path_expr:
        text = expand(mount.sub_path_expr, env)
        check_text(text.value, f"{where}: subPathExpr")
        if text.secret:
            raise UsageError(f"{where}: subPathExpr would put a secret into the name of a directory.")
        sub = text.value
    if not sub:
        return source, []
    path = posixpath.join(source, relative_path(sub, f"{where}: subPath"))
    return path, [] if path in volumes.file_paths else [path]


def mount_points(found: Sequence[Mount], volumes: Volumes) -> tuple[list[str], list[str]]:
    """Directories and files that must exist in an outer mount of ours for an inner one to be mounted on."""
    directories: list[str] = []
    files: list[str] = []
    for inner in found:
        outer = [m for m in found if m is not inner and inner.target.startswith(m.target + "/")]
        if not outer:
            continue
        nearest = max(outer, key=lambda m: len(m.target))
        if nearest.source.startswith("/") or nearest.source in volumes.file_paths:
            continue
        point = nearest.source + inner.target[len(nearest.target) :]
        if point not in volumes.file_paths:
            (files if inner.source in volumes.file_paths else directories).append(point)
    return directories, files
