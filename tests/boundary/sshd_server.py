"""A real sshd on the loopback, with its own keys and configuration, and users with odd login shells."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ["PATH"])


def require(condition: object, reason: str) -> None:
    """Skip when this machine lacks something; fail where a skip is not allowed."""
    if not condition:
        if os.environ.get("HPCSH_REQUIRE"):
            pytest.fail(reason)
        pytest.skip(reason)


def processes_with(marker: str) -> dict[int, str]:
    """Living processes of this machine that have `marker` in their environment: pid → command line."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if marker.encode() in Path(f"/proc/{entry}/environ").read_bytes():
                    found[int(entry)] = Path(f"/proc/{entry}/cmdline").read_text().replace("\0", " ")
    return found


def descendants(pid: int) -> list[int]:
    """Children of a process, and theirs."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                parents[int(entry)] = int(words[1])
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found[1:]


class Users:
    """Users of the system made for a test, and removed with their homes."""

    def __init__(self) -> None:
        self._made: list[str] = []
        self.root = Path(tempfile.mkdtemp(prefix="hpcsh-users-"))
        self.root.chmod(0o755)

    def add(self, shell: str, files: dict[str, str | bytes], password: str = "") -> str:
        require(os.getuid() == 0, "making users needs root")
        where = shutil.which(shell)
        require(where, f"{shell} is not installed")
        name = f"hpcsh{secrets.token_hex(4)}"
        home = self.root / name
        hashed = _hash(password) if password else "*"
        subprocess.run(["useradd", "-M", "-d", home, "-s", str(where), "-p", hashed, name], check=True)
        self._made.append(name)
        home.mkdir(mode=0o755)
        for file, text in files.items():
            path = home / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode() if isinstance(text, str) else text)
        subprocess.run(["chown", "-R", name, home], check=True)
        return name

    def remove(self) -> None:
        for name in self._made:
            for _ in range(20):  # userdel refuses while a process of the user is ending
                if subprocess.run(["userdel", name], capture_output=True).returncode == 0:
                    break
                time.sleep(0.1)
        shutil.rmtree(self.root, ignore_errors=True)


def _hash(password: str) -> str:
    done = subprocess.run(["openssl", "passwd", "-6", password], check=True, capture_output=True, text=True)
    return done.stdout.strip()


class Sshd:
    """One server. `start` may be called again after `kill`; the port stays."""

    def __init__(self, folder: Path, **options: str) -> None:
        require(SSHD, "sshd is not installed (Debian: openssh-server)")
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("host", "client"):
            keygen(folder / name)
        self.keys = Path(tempfile.mkdtemp(prefix="hpcsh-keys-"))  # users must be able to read it
        self.keys.chmod(0o755)
        shutil.copy(folder / "client.pub", self.keys / "all")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.options = {
            "Port": str(self.port), "ListenAddress": "127.0.0.1", "HostKey": str(folder / "host"),
            "AuthorizedKeysFile": str(self.keys / "all"), "StrictModes": "no", "UsePAM": "no",
            "PidFile": "none", "MaxSessions": "2", "PermitRootLogin": "yes", "MaxStartups": "100", **options,
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        self.known_hosts = folder / "known_hosts"
        kind, key = (folder / "host.pub").read_text().split()[:2]
        self.known_hosts.write_text(f"# ours\n[127.0.0.1]:{self.port} {kind} {key}\n")

    def start(self) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)
        config = self.folder / "sshd_config"
        lines = [f"{name} {value}" for name, value in self.options.items()]
        config.write_text("\n".join([*lines, "PerSourcePenalties no"]) + "\n")
        assert SSHD
        if subprocess.run([SSHD, "-t", "-f", config], capture_output=True).returncode:  # before OpenSSH 9.8
            config.write_text("\n".join(lines) + "\n")
        log = (self.folder / "log").open("ab")
        argv = [SSHD, "-D", "-e", "-f", config]
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=log)
        log.close()
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.02)
        raise AssertionError("sshd does not listen")

    def kill(self) -> None:
        """Kill the server and the processes of its connections, but not what users run."""
        if self.process:
            mine = [self.process.pid, *(pid for pid in descendants(self.process.pid) if is_sshd(pid))]
            for pid in mine:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def remove(self) -> None:
        """Kill, and leave no file outside the folder."""
        self.kill()
        shutil.rmtree(self.keys, ignore_errors=True)

    def config(self, user: str = "", *more: str, name: str = "target") -> str:
        """An ssh_config file for a login here as `user`; the host is called "target"."""
        path = self.folder / f"config-{user}-{secrets.token_hex(4)}"
        lines = [
            f"Host {name}", "HostName 127.0.0.1", f"Port {self.port}", f"IdentityFile {self.folder}/client",
            "IdentitiesOnly yes", f"UserKnownHostsFile {self.known_hosts}", "GlobalKnownHostsFile none",
        ]  # fmt: skip
        path.write_text("\n  ".join([*lines, *([f"User {user}"] if user else []), *more]) + "\n")
        return str(path)


def keygen(path: Path, phrase: str = "") -> None:
    if not path.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-f", path], check=True)


def is_sshd(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().startswith("sshd")
    return False
