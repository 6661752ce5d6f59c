"""What the lab's root file system is made of, and the mmdebstrap command that makes it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

SUITE = "trixie"
_EXCLUDED = ("doc", "man", "locale", "info", "lintian", "bug")


def build_file(name: str) -> Path:
    """A file of the recipe that travels in the package."""
    return Path(str(resources.files("hpcsh.lab"))) / "files/recipe" / name


def packages() -> list[str]:
    """The Debian packages that are asked for by name."""
    lines = build_file("packages.txt").read_text().splitlines()
    return [word for line in lines if not line.startswith("#") for word in line.split()]


def key() -> str:
    """Changes whenever the root file system would; 12 hexadecimal digits."""
    digest = hashlib.sha256(SUITE.encode())
    for part in ("packages.txt", "setup"):
        digest.update(build_file(part).read_bytes())
    return digest.hexdigest()[:12]


def mirror(apt: Path = Path("/etc/apt"), os_release: Path = Path("/etc/os-release")) -> str | None:
    """The Debian mirror this machine's own apt uses; None off Debian, where mmdebstrap's default is right."""
    try:
        if not re.search(r"^ID=[\"']?debian[\"']?$", os_release.read_text(), re.M):
            return None
    except OSError:
        return None
    lists = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.list"))]
    stanzas = sorted((apt / "sources.list.d").glob("*.sources"))
    found = [*_deb822(_readable(stanzas)), *_one_line(_readable(lists))]
    # Third-party repositories stand beside Debian's; Debian's is the one that carries the release itself.
    return found[0] if found else None


def _readable(paths: Iterable[Path]) -> Iterable[str]:
    for path in paths:
        try:
            yield path.read_text()
        except OSError:
            continue


def _is_release(suites: Iterable[str], components: Iterable[str], uri: str) -> bool:
    named = any("/" not in s and not s.endswith("-security") for s in suites)
    return named and "main" in components and "security" not in uri


def _deb822(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        for stanza in re.split(r"\n\s*\n", text):
            lines = [line for line in stanza.splitlines() if not line.startswith("#")]
            fields = {k.strip().lower(): v for k, _, v in (line.partition(":") for line in lines)}
            disabled = fields.get("enabled", "").strip().lower() == "no"
            if disabled or "deb" not in fields.get("types", "").split():
                continue
            for uri in fields.get("uris", "").split():
                if _is_release(fields.get("suites", "").split(), fields.get("components", "").split(), uri):
                    yield uri


def _one_line(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        for line in text.splitlines():
            match = re.match(r"deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)", line)
            if match and _is_release([match[2]], match[3].split(), match[1]):
                yield match[1]


def mmdebstrap(target: Path, *, variant: str, include: Iterable[str], hooks: Iterable[str] = ()) -> list[str]:
    """The command that builds a tar archive `target` of Debian with the packages `include`."""
    command = [
        "mmdebstrap", "--verbose", f"--variant={variant}", "--components=main", "--format=tar",
        "--aptopt=Apt::Install-Recommends false", "--aptopt=Acquire::Retries 3",
        *(f"--dpkgopt=path-exclude=/usr/share/{d}/*" for d in _EXCLUDED),
        f"--include={','.join(include)}",
        *(f"--customize-hook={h}" for h in hooks),
        SUITE, str(target),
    ]  # fmt: skip
    chosen = mirror()
    return [*command, chosen] if chosen else command


def rootfs_command(target: Path) -> list[str]:
    """The command that builds the lab's root file system as the tar archive `target`."""
    hooks = [f"upload '{build_file('setup')}' /tmp/setup", 'chroot "$1" sh /tmp/setup', 'rm "$1/tmp/setup"']
    return mmdebstrap(target, variant="apt", include=packages(), hooks=hooks)
