"""Runs on the target: asks a registry or a file what an image is, without pulling it."""
# ruff: noqa: UP006, UP031, UP035, UP045

import base64
import hashlib
import json
import os
import platform
import re
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Optional, Sequence, Tuple

from hpcsh.images.remote_base import Failed, Json, say
from hpcsh.images.remote_pool import metadata

MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x"}
TIMEOUT = 30


def credentials(registry: str) -> Optional[str]:
    """User name and password that apptainer, docker or podman have stored for a registry."""
    user, password = (os.environ.get("APPTAINER_DOCKER_" + n) for n in ("USERNAME", "PASSWORD"))
    if user and password:
        return user + ":" + password
    home = os.path.expanduser("~")
    names = [registry] + (["https://index.docker.io/v1/"] if registry == "docker.io" else [])
    places = [
        os.environ.get("REGISTRY_AUTH_FILE", ""),
        os.path.join(os.environ.get("XDG_RUNTIME_DIR", ""), "containers/auth.json"),
        os.path.join(home, ".apptainer/docker-config.json"),
        os.path.join(home, ".docker/config.json"),
    ]
    for place in places:
        try:
            with open(place) as f:
                auths = json.load(f).get("auths", {})
        except (OSError, ValueError, AttributeError):
            continue
        for name in names:
            auth = (auths.get(name) or {}).get("auth")
            if auth:
                return base64.b64decode(auth).decode()
    return None


class Registry:
    """The read side of the distribution protocol, as much as a digest and sizes need."""

    def __init__(self, registry: str, repository: str, plain: bool) -> None:
        host = "registry-1.docker.io" if registry == "docker.io" else registry
        self.registry = registry
        self.base = "%s://%s/v2/%s" % ("http" if plain else "https", host, repository)
        self.repository = repository
        self.authorization = None  # type: Optional[str]

    def get(self, path: str, accept: Sequence[str], retry: bool = True) -> Tuple[bytes, Any]:
        """Bytes and headers. Raises `Failed` with the registry's words."""
        request = urllib.request.Request(self.base + path)
        request.add_header("Accept", ", ".join(accept))
        if self.authorization:
            request.add_unredirected_header("Authorization", self.authorization)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return answer.read(), answer.headers
        except urllib.error.HTTPError as e:
            challenge = e.headers.get("WWW-Authenticate", "")
            if e.code == 401 and retry and self.log_in(challenge):
                return self.get(path, accept, retry=False)
            raise Failed("HTTP %d %s: %s" % (e.code, e.reason, words_of(e)), http=e.code) from None
        except urllib.error.URLError as e:
            raise Failed("%s: %s" % (self.base.split("/v2/")[0], e.reason)) from None
        except (OSError, ValueError) as e:
            raise Failed("%s: %s" % (self.base.split("/v2/")[0], e)) from None

    def log_in(self, challenge: str) -> bool:
        """Answer a 401: basic with what is stored, bearer with a token (anonymous where nothing is)."""
        stored = credentials(self.registry)
        basic = "Basic " + base64.b64encode(stored.encode()).decode() if stored else None
        if challenge.lower().startswith("bearer"):
            fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
            query = {"service": fields.get("service", ""), "scope": "repository:%s:pull" % self.repository}
            request = urllib.request.Request(fields.get("realm", "") + "?" + urllib.parse.urlencode(query))
            if basic:
                request.add_header("Authorization", basic)
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                    token = json.loads(answer.read().decode())
            except urllib.error.HTTPError as e:
                raise Failed("HTTP %d %s: %s" % (e.code, e.reason, words_of(e)), http=e.code) from None
            except (OSError, ValueError) as e:
                raise Failed("%s: %s" % (fields.get("realm", "the token service"), e)) from None
            self.authorization = "Bearer " + (token.get("token") or token.get("access_token") or "")
            return True
        self.authorization = basic
        return basic is not None

    def manifest(self, what: str) -> Tuple[str, Json]:
        """The digest of a tag, and the manifest for this machine's architecture."""
        data, headers = self.get("/manifests/" + what, MANIFESTS)
        digest = headers.get("Docker-Content-Digest") or "sha256:" + hashlib.sha256(data).hexdigest()
        manifest = json.loads(data.decode())
        if "manifests" in manifest:
            wanted = ARCHITECTURES.get(platform.machine(), platform.machine())
            fits = [
                m["digest"] for m in manifest["manifests"]
                if (m.get("platform") or {}).get("architecture") == wanted
                and (m.get("platform") or {}).get("os", "linux") == "linux"
            ]  # fmt: skip
            if not fits:
                raise Failed("no image for linux/%s in the manifest list" % wanted)
            manifest = json.loads(self.get("/manifests/" + fits[0], MANIFESTS)[0].decode())
        return digest, manifest


def words_of(error: Any) -> str:
    """The message in a registry's answer, else nothing."""
    try:
        body = json.loads(error.read(65536).decode())
        return "; ".join(e.get("message", "") or e.get("code", "") for e in body["errors"])[:500]
    except Exception:  # whatever a stranger sent
        return ""


def resolve(request: Json) -> Json:
    """Digest, bytes of the layers and OCI configuration of a reference, without pulling it."""
    kind = request["kind"]
    if kind == "docker":
        registry = Registry(
            request["registry"], request["repository"], request["registry"] in request["plain_http"]
        )
        digest, manifest = registry.manifest(request["digest"] or request["tag"])
        config = manifest.get("config") or {}
        layers = manifest.get("layers") or []
        raw = json.loads(registry.get("/blobs/" + config["digest"], ("*/*",))[0].decode()) if config else {}
        return {
            "digest": digest, "bytes": sum(int(x.get("size", 0)) for x in layers),
            "config": raw.get("config") or {}, "source": "docker",
        }  # fmt: skip
    path = request["path"]
    try:
        information = os.stat(path)
        kind = look(path) if kind == "file" else kind
    except OSError as e:
        raise Failed("%s: %s" % (path, e.strerror), file=path) from None
    if not kind:
        raise Failed(
            "%s is neither a SIF file, nor a root file system, nor an image archive" % path, file=path
        )
    stamp = [information.st_size, information.st_mtime]
    digest = ""
    if kind in ("oci-archive", "docker-archive") or (kind == "sif" and request["hash"]):
        same = [e for e in metadata(request["pool"]) if e.get("stamp") == stamp]
        known = [e["digest"] for e in same if e["reference"] == request["canonical"]]
        digest = str(known[0]) if known else "sha256:" + sha256(path, information.st_size)
    return {
        "digest": digest, "bytes": information.st_size, "config": {}, "source": kind, "stamp": stamp,
    }  # fmt: skip


def look(path: str) -> str:
    """What a file is, from its content."""
    if os.path.isdir(path):
        return "directory" if os.path.isdir(os.path.join(path, "bin")) or os.path.isdir(
            os.path.join(path, "usr")) else ""  # fmt: skip
    with open(path, "rb") as f:
        head = f.read(64)
    if b"SIF_MAGIC" in head:
        return "sif"
    import tarfile

    try:
        with tarfile.open(path) as archive:
            for count, member in enumerate(archive):
                name = member.name.lstrip("./")
                if name in ("oci-layout", "index.json"):
                    return "oci-archive"
                if name in ("manifest.json", "repositories"):
                    return "docker-archive"
                if count > 10000:
                    break
    except (tarfile.TarError, OSError, EOFError):
        pass
    return ""


def sha256(path: str, size: int) -> str:
    """The digest of a file, with progress."""
    found, done = hashlib.sha256(), 0
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 22), b""):
            found.update(block)
            done += len(block)
            if size > 1 << 26:
                say(step="checksum", done=done, total=size)
    return found.hexdigest()
