"""Runs on the target: apptainer and podman as builders, their stages and their bytes."""
# ruff: noqa: UP006, UP022, UP031, UP035, UP045

import json
import os
import re
import subprocess
import threading
import time
from typing import Dict, List, Optional, Tuple

from hpcsh.images.remote_base import Failed, Json, say
from hpcsh.images.remote_pool import size_of

STAGES = (
    ("Fetching OCI image", "fetch"), ("Copying blob", "fetch"), ("Getting image source", "fetch"),
    ("Extracting OCI image", "unpack"), ("Inserting", "configure"), ("Creating SIF", "write"),
)  # fmt: skip


class Tool:
    """A running tool: its stages from its own words, its bytes from what it writes."""

    def __init__(
        self, argv: List[str], env: Dict[str, str], measured: Dict[str, str], total: Optional[int]
    ) -> None:
        self.stage, self.measured, self.total = "start", measured, total
        self.lines = []  # type: List[str]
        say(step="run", message=" ".join(argv))
        # It stays in our process group, so that whatever ends us ends it.
        self.process = subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.nice(5),
        )  # fmt: skip

    def read(self) -> None:
        """Follow the tool's words."""
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            line = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", raw.decode("utf-8", "replace")).strip()
            if line:
                self.lines = [*self.lines[-40:], line]
            for words, stage in STAGES:
                if words in line and stage != self.stage:
                    self.stage = stage
                    say(step=stage, message=re.sub(r"^\w+:\s*", "", line))

    def run(self) -> str:
        """Wait for the end; raises `Failed` with the last lines of the tool."""
        reader = threading.Thread(target=self.read, daemon=True)
        reader.start()
        pause = 0.1
        try:
            while reader.is_alive():
                reader.join(pause)
                began = time.time()
                self.measure()
                pause = min(5.0, max(0.25, 20 * (time.time() - began)))
            code = self.process.wait()
        except BaseException:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            raise
        if code != 0:
            raise Failed("\n".join(self.lines[-15:]) or "status %d" % code, status=code)
        return "\n".join(self.lines)

    def measure(self) -> None:
        """Say how much the present stage has written."""
        place = self.measured.get(self.stage)
        if place and os.path.exists(place):
            total = self.total if self.stage == "fetch" else None
            done = size_of(place)
            say(step=self.stage, done=min(done, total) if total else done, total=total)


def source(request: Json) -> str:
    """The reference as the tools write it; a registry's image by its digest, so that it cannot change."""
    if request["source"] == "docker":
        return "docker://%s/%s@%s" % (request["registry"], request["repository"], request["digest"])
    return "%s:%s" % (request["source"], request["path"])


def apptainer(request: Json, work: str) -> Tuple[str, Json]:
    """Make a SIF."""
    made = os.path.join(work, "image.sif")
    if request["source"] == "sif":
        return copy(request["path"], made), {}
    env = dict(
        os.environ, APPTAINER_CACHEDIR=os.path.join(work, "cache"), APPTAINER_TMPDIR=os.path.join(work, "tmp")
    )
    argv = ["apptainer", "pull"] if request["source"] == "docker" else ["apptainer", "build"]
    if request["source"] == "docker" and request["registry"] in request["plain_http"]:
        argv.append("--no-https")
    measured = {
        "fetch": os.path.join(work, "cache"), "unpack": os.path.join(work, "tmp"), "write": made,
        "start": os.path.join(work, "cache"), "configure": os.path.join(work, "tmp"),
    }  # fmt: skip
    Tool([*argv, made, source(request)], env, measured, request["bytes"]).run()
    return made, request["config"] or oci_config(made)


def copy(path: str, made: str) -> str:
    """Copy a SIF into the pool with progress."""
    total, done = os.stat(path).st_size, 0
    with open(path, "rb") as old, open(made, "wb") as new:
        for block in iter(lambda: old.read(1 << 22), b""):
            new.write(block)
            done += len(block)
            say(step="copy", done=done, total=total)
        new.flush()
        os.fsync(new.fileno())
    return made


def oci_config(path: str) -> Json:
    """The OCI configuration that apptainer keeps in a SIF, {} where there is none."""
    try:
        listed = subprocess.check_output(
            ["apptainer", "sif", "list", path], stderr=subprocess.DEVNULL
        ).decode()
        for line in listed.splitlines():
            if "JSON" in line:
                number = line.split("|")[0].strip()
                data = subprocess.check_output(
                    ["apptainer", "sif", "dump", number, path], stderr=subprocess.DEVNULL
                )
                found = json.loads(data.decode())
                if isinstance(found, dict) and any(
                    k in found for k in ("Cmd", "Entrypoint", "Env", "WorkingDir")
                ):
                    return found
    except (OSError, ValueError, subprocess.CalledProcessError):
        pass
    return {}


def podman(request: Json, work: str) -> Tuple[str, Json]:
    """Make a directory with the root file system; its owner is the user, devices are left out."""
    if request["source"] == "sif":
        raise Failed("podman cannot run SIF files; apptainer is needed")
    base = [
        "podman", "--root", os.path.join(work, "storage"), "--runroot", os.path.join(work, "run"),
        "--storage-driver", "vfs", "--storage-opt", "vfs.ignore_chown_errors=true",
        "--cgroup-manager=cgroupfs", "--log-level=error", "--tmpdir", os.path.join(work, "tmp"),
    ]  # fmt: skip
    env = dict(os.environ, TMPDIR=os.path.join(work, "tmp"), XDG_RUNTIME_DIR=os.path.join(work, "home"))
    plain = request["source"] == "docker" and request["registry"] in request["plain_http"]
    measured = {k: os.path.join(work, "storage") for k in ("start", "fetch", "unpack")}
    options = ["--tls-verify=false"] if plain else []
    pulled = Tool([*base, "pull", *options, source(request)], env, measured, request["bytes"]).run()
    image = pulled.splitlines()[-1].strip()
    made = os.path.join(work, "image.rootfs")
    os.mkdir(made)
    os.chmod(made, 0o777)  # the container's /, which the user may write to as in any other container
    config = json.loads(said([*base, "image", "inspect", "--format", "{{json .Config}}", image], env) or "{}")
    container = said([*base, "create", image, "true"], env).split()[-1]
    say(step="unpack", message="exporting the root file system")
    export = subprocess.Popen([*base, "export", container], env=env, stdout=subprocess.PIPE)
    tar = [
        "tar",
        "-x",
        "-C",
        made,
        "--no-same-owner",
        "--preserve-permissions",
        "--exclude=dev/*",
        "--delay-directory-restore",
    ]
    code = subprocess.call(tar, stdin=export.stdout)
    if export.wait() or code:
        raise Failed("podman export ended with %s, tar with %s" % (export.returncode, code))
    # Its storage has files of subordinate users, which only podman itself can remove.
    said([*base, "system", "reset", "--force"], env)
    return made, request["config"] or config or {}


def said(argv: List[str], env: Dict[str, str]) -> str:
    """What a command prints; `Failed` with its own words when it fails."""
    done = subprocess.run(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise Failed(done.stderr.decode("utf-8", "replace").strip()[-1000:] or "status %d" % done.returncode)
    return done.stdout.decode("utf-8", "replace")
