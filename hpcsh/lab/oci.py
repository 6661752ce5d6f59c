"""Write container images as OCI archives, without a tool: one layer, a configuration, an index."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}  # others have one name
_CREATED = "2026-01-01T00:00:00Z"


class Layer:
    """A root file system that is being put together in a compressed tar file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names: set[str] = set()
        self._raw = path.open("wb")
        self._zip = gzip.GzipFile(fileobj=self._raw, mode="wb", compresslevel=3, mtime=0)
        self._plain = _Hashing(self._zip)
        self._tar: tarfile.TarFile = tarfile.open(  # type: ignore[call-overload]  # noqa: SIM115
            fileobj=self._plain, mode="w|", format=tarfile.PAX_FORMAT
        )

    def has(self, name: str) -> bool:
        """Whether the path `name` (relative, without a leading dot) is in the layer already."""
        return name in self._names

    def tree(self, archive: Path, without: Iterable[str]) -> None:
        """Copy a tar archive; paths that begin with one of `without` are left out."""
        left_out = tuple(without)
        with tarfile.open(archive, "r|") as source:
            for member in source:
                member.name = member.name.removeprefix("./").strip("/")
                if not member.name or member.name == "." or member.name.startswith(left_out):
                    continue
                if member.islnk():
                    member.linkname = member.linkname.removeprefix("./")
                self._add(member, source.extractfile(member) if member.isreg() else None)

    def directory(self, name: str, mode: int = 0o755) -> None:
        """An empty directory, unless it is there."""
        if not self.has(name):
            self._add(_info(name, tarfile.DIRTYPE, mode))

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """A file of root's."""
        info = _info(name, tarfile.REGTYPE, mode)
        info.size = len(data)
        self._add(info, io.BytesIO(data))

    def link(self, name: str, target: str) -> None:
        """A symbolic link, unless the path is there."""
        if not self.has(name):
            info = _info(name, tarfile.SYMTYPE, 0o777)
            info.linkname = target
            self._add(info)

    def close(self) -> str:
        """Finish the file; the digest of the uncompressed layer."""
        self._tar.close()
        self._zip.close()
        self._raw.close()
        return self._plain.digest()

    def _add(self, info: tarfile.TarInfo, data: Any = None) -> None:
        self._names.add(info.name)
        self._tar.addfile(info, data)


class _Hashing:
    """Passes bytes on and knows their digest."""

    def __init__(self, sink: gzip.GzipFile) -> None:
        self._sink = sink
        self._sum = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._sum.update(data)
        return self._sink.write(data)

    def digest(self) -> str:
        return f"sha256:{self._sum.hexdigest()}"


def _info(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = kind, mode
    return info


def write_archive(target: Path, layer: Path, diff_id: str, config: dict[str, Any]) -> None:
    """Write the image of one `layer` as an OCI archive; `config` is as in the OCI specification."""
    layer_digest, machine = _file_digest(layer), platform.machine()
    blobs: list[tuple[str, bytes]] = []

    def blob(document: dict[str, Any], media_type: str) -> dict[str, Any]:
        data = json.dumps(document, sort_keys=True).encode()
        digest = hashlib.sha256(data).hexdigest()
        blobs.append((digest, data))
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    described = blob(
        {
            "created": _CREATED, "architecture": _ARCHITECTURE.get(machine, machine), "os": "linux",
            "config": config, "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": _CREATED, "created_by": "hpcsh lab"}],
        },
        "application/vnd.oci.image.config.v1+json",
    )  # fmt: skip
    manifest = blob(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described,
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": f"sha256:{layer_digest}", "size": layer.stat().st_size,
            }],
        },
        "application/vnd.oci.image.manifest.v1+json",
    )  # fmt: skip
    named = {**manifest, "annotations": {"org.opencontainers.image.ref.name": "latest"}}
    index = json.dumps({"schemaVersion": 2, "manifests": [named]}).encode()
    files = [("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'), ("index.json", index)]
    files += [(f"blobs/sha256/{digest}", data) for digest, data in blobs]
    with tarfile.open(target, "w") as archive:
        for name, data in files:
            info = _info(name, tarfile.REGTYPE, 0o644)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        archive.add(layer, f"blobs/sha256/{layer_digest}")


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
