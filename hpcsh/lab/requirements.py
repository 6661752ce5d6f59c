"""What this machine needs to have for a lab, found out before anything is begun."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from hpcsh.errors import UnavailableError
from hpcsh.lab import kernel, userns

_PACKAGE = {"mmdebstrap": "mmdebstrap", "newuidmap": "uidmap", "newgidmap": "uidmap", "tar": "tar"}
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_NEEDED_IDS = 30_000


def check(*, build: bool) -> None:
    """Return when a lab can come up; `build` says that an image has to be built first.

    As root, missing Debian packages are installed. `UnavailableError` lists all that is missing and how to
    get it.
    """
    root = os.geteuid() == 0
    tools = ["tar", *(["mmdebstrap"] if build else []), *([] if root else ["newuidmap", "newgidmap"])]
    missing = sorted({_PACKAGE[t] for t in tools if userns.which(t) is None} | _missing_keys(build))
    if missing and root:
        missing = _install(missing)
    problems = [f"these Debian packages are not installed: {' '.join(missing)}"] if missing else []
    fixes = [f"{'' if root else 'sudo '}apt-get install -y {' '.join(missing)}"] if missing else []
    if not root:
        _check_ids(problems, fixes)
    if not problems:
        _check_namespaces(problems, fixes, root)
    if problems:
        why = "\n".join(f"- {p}" for p in problems)
        raise UnavailableError("This machine cannot run a lab yet.", why=why, fix="\n     ".join(fixes))


def _missing_keys(build: bool) -> set[str]:
    """Without Debian's keys, as on Ubuntu, mmdebstrap can trust no package."""
    return {"debian-archive-keyring"} if build and not _KEYRING.exists() else set()


def _install(packages: list[str]) -> list[str]:
    """Install Debian packages; those that are still missing afterwards."""
    if userns.which("apt-get") is None:
        return packages
    print(f"  installing: {' '.join(packages)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    for command in (install, ["apt-get", "update", "-qq"], install):
        done = subprocess.run(command, env=environment, capture_output=True, timeout=600, check=False)
        if command == install and done.returncode == 0:
            return []
    return packages


def _check_ids(problems: list[str], fixes: list[str]) -> None:
    login = userns.login_name()
    for path, ids, flag in (
        (Path("/etc/subuid"), userns.uid_map(), "--add-subuids"),
        (Path("/etc/subgid"), userns.gid_map(), "--add-subgids"),
    ):
        if ids.size < _NEEDED_IDS:
            problems.append(f"{path} gives {login} {ids.size - 1} subordinate ids; a lab needs {_NEEDED_IDS}")
            fixes.append(f"sudo usermod {flag} 100000-165535 {login}")


def _check_namespaces(problems: list[str], fixes: list[str], root: bool) -> None:
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWUTS
    why = _refused(flags if root else flags | kernel.CLONE_NEWUSER)
    if why is None:
        return
    problems.append(f"the kernel does not let this user make namespaces: {why}")
    switches = {  # name: (what forbids it, what allows it)
        "kernel.unprivileged_userns_clone": ("0", "1"),
        "kernel.apparmor_restrict_unprivileged_userns": ("1", "0"),
        "user.max_user_namespaces": ("0", "15000"),
    }
    found = [n for n, (bad, _) in switches.items() if _contents(f"/proc/sys/{n.replace('.', '/')}") == bad]
    fixes += [f"sudo sysctl -w {name}={switches[name][1]}" for name in found]
    if not found:
        fixes.append("run it outside of this container, or start the container with --privileged")


def _refused(flags: int) -> str | None:
    """Why a child may not unshare `flags` and mount in it; None when it may."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            kernel.unshare(flags)
            kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
        except OSError as e:
            os.write(write, str(e).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as answer:
        why = answer.read().decode()
    os.waitpid(child, 0)
    return why or None


def _contents(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
