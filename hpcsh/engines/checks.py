"""What `doctor` looks at on a Slurm cluster, shared by the engines. Everything here only looks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hpcsh.boundary.base import Boundary, Completed
from hpcsh.engines.context import Context
from hpcsh.errors import HpcshError
from hpcsh.images.pool import Pool
from hpcsh.model import Finding, Resources, Severity
from hpcsh.slurm.options import merge, to_argv

TIMEOUT = 30.0
SETUP_TIMEOUT = 120.0
_LOCAL = frozenset({"tmpfs", "ramfs", "overlayfs", "overlay", "squashfs"})
_JOB_SHELL = """\
if ! type module >/dev/null 2>&1 && [ -r /etc/profile ]; then . /etc/profile; fi
"""


def found(id: str, what: str) -> Finding:
    """Something that is as it should be."""
    return Finding(id=id, severity=Severity.OK, what=what)


def wrong(id: str, what: str, fix: str = "") -> Finding:
    """Something without which the engine does not work."""
    return Finding(id=id, severity=Severity.ERROR, what=what, fix=fix)


def doubtful(id: str, what: str, fix: str = "") -> Finding:
    """Something that may matter."""
    return Finding(id=id, severity=Severity.WARNING, what=what, fix=fix)


async def run(
    boundary: Boundary, argv: Sequence[str], stdin: bytes = b"", timeout: float = TIMEOUT
) -> Completed:
    """Run a command; one that cannot be run at all is told as status 127."""
    try:
        return await boundary.run(argv, stdin=stdin, timeout=timeout)
    except HpcshError as e:
        return Completed(tuple(argv), 127, b"", str(e).encode())


def words(done: Completed) -> str:
    """What a command said, in one short line."""
    text = done.error_text or done.text.strip()
    return " ".join(text.split())[-300:] or f"status {done.code}"


async def slurm(context: Context) -> list[Finding]:
    """Slurm's commands, the profile's account, partition and QOS, its setup, its workdir, Python."""
    out = await _commands(context)
    if not any(f.severity is Severity.ERROR for f in out):
        out += await _settings(context)
    out += await _setup(context)
    out.append(await _workdir(context))
    out.append(await _python(context))
    return out


async def _commands(context: Context) -> list[Finding]:
    out = []
    try:
        version = await context.cluster.version()
        out.append(found("slurm.version", f"Slurm {'.'.join(map(str, version))} on {context.boundary.name}"))
    except HpcshError as e:
        fix = "load Slurm in the profile's `setup:`, or choose a login node of the cluster as target"
        return [wrong("slurm.version", f"Slurm's commands do not answer: {e.what}", fix)]
    try:
        queue = await context.cluster.queue(fresh=True)
        if queue.stale:
            out.append(
                wrong("slurm.controller", f"The controller does not answer: {queue.stale}", "ask the site")
            )
        else:
            out.append(found("slurm.controller", f"The controller answers; you have {len(queue.jobs)} jobs"))
        nodes = await context.cluster.nodes()
        up = [n for n in nodes if not re.match(r"(?i)down|drain|fail|unk|inval|not_resp", n.state)]
        tell = found if up else doubtful
        out.append(tell("slurm.nodes", f"{len(up)} of {len(nodes)} nodes can take jobs"))
    except HpcshError as e:
        out.append(wrong("slurm.controller", f"The controller does not answer: {e}", "ask the site"))
    for command in ("sbatch", "scancel", "sacct", "scontrol"):
        done = await run(context.boundary, [command, "--version"])
        if done.code:
            tell = doubtful if command == "sacct" else wrong
            out.append(tell(f"slurm.{command}", f"{command}: {words(done)}", "load Slurm in `setup:`"))
    done = await run(context.boundary, ["sacct", "-n", "-X", "-S", "now"])
    if done.code:
        what = f"There is no accounting: {words(done)}"
        out.append(
            doubtful("slurm.accounting", what, "exit codes of jobs that left the queue come from marks only")
        )
    else:
        out.append(found("slurm.accounting", "sacct answers"))
    return out


async def _settings(context: Context) -> list[Finding]:
    """The profile's options, judged by Slurm itself: a submission that is only tested."""
    wanted = context.profile.resources
    out = []
    try:
        options = to_argv(merge(Resources(), wanted))
    except HpcshError as e:
        return [wrong("profile.resources", f"The profile's resources: {e}", "correct the profile")]
    done = await run(context.boundary, ["sbatch", "--test-only", *options, "--wrap=true"])
    if done.code:
        fix = "correct `resources:` in the profile (sinfo; sacctmgr show assoc user=$USER)"
        out.append(wrong("profile.resources", f"Slurm refuses the profile's resources: {words(done)}", fix))
    else:
        said = " ".join(options) or "(none)"
        out.append(found("profile.resources", f"Slurm takes the profile's resources: {said}"))
    user, _, _ = await context.boundary.identity()
    for field, query, what in (
        ("account", ["assoc", f"user={user}", "format=account"], f"associations of {user} with an account"),
        ("qos", ["qos", "format=name"], "QOS"),
    ):
        value = getattr(wanted, field)
        if value:
            out += await _known(context.boundary, field, value, query, what)
    return out


async def _known(boundary: Boundary, field: str, value: str, query: list[str], what: str) -> list[Finding]:
    """Whether the user may name an account or QOS; Slurm without enforcement would take any.

    Silent where accounting shows nothing: some sites hide it from users.
    """
    done = await run(boundary, ["sacctmgr", "-n", "-P", "show", *query])
    names = sorted(set(done.text.split()))
    if done.code or not names:
        return []
    missing = [name for name in value.split(",") if name not in names]
    if missing:
        said = f"{', '.join(missing)} is not among the {what}"
        return [wrong(f"profile.{field}", said, f"use one of: {', '.join(names[:20])}")]
    return [found(f"profile.{field}", f"{value} is among the {what}")]


async def _setup(context: Context) -> list[Finding]:
    """The profile's shell lines: their grammar, in a login shell, and in a shell as a job has it."""
    setup = context.profile.setup
    if not setup.strip():
        return [found("profile.setup", "The profile has no setup lines")]
    boundary = context.boundary
    fix = "correct `setup:` in the profile"
    done = await run(boundary, ["bash", "-n"], setup.encode())
    if done.code:
        return [wrong("profile.setup", f"The setup lines are no shell: {words(done)}", fix)]
    code = (
        "s=$(cat; printf x); exec </dev/null; "
        'trap \'echo "line that failed: $BASH_COMMAND" >&2; exit 1\' ERR; eval "${s%x}"'
    )
    job = ["env", "-i", f"HOME={await boundary.home()}", "PATH=/usr/local/bin:/usr/bin:/bin", "bash", "-c"]
    out = []
    for place, argv in (
        ("the login node", ["bash", "-l", "-c", code]),
        ("jobs (tried on the login node, with a job's bare environment)", [*job, _JOB_SHELL + code]),
    ):
        done = await run(boundary, argv, setup.encode(), SETUP_TIMEOUT)
        id = "profile.setup" if "-l" in argv else "profile.setup.jobs"
        if done.code:
            out.append(wrong(id, f"The setup lines fail for {place}: {words(done)}", fix))
        else:
            out.append(found(id, f"The setup lines work for {place}"))
    return out


async def _workdir(context: Context) -> Finding:
    """Writable, and on a file system that nodes can share."""
    boundary = context.boundary
    path = context.profile.workdir
    if path == "~" or path.startswith("~/"):
        path = (await boundary.home()).rstrip("/") + path[1:]
    probe = f"{path}/.doctor"
    try:
        await boundary.mkdir(path)
        await boundary.write(probe, b"x")
        await boundary.remove(probe)
    except HpcshError as e:
        return wrong(
            "workdir",
            f"{path} cannot be written: {e}",
            "set `workdir:` in the profile to a directory of yours",
        )
    kind = (await run(boundary, ["stat", "-f", "-c", "%T", path])).text.strip()
    if kind in _LOCAL:
        fix = "set `workdir:` in the profile to a shared file system"
        return doubtful("workdir", f"{path} is on {kind}, which compute nodes cannot see", fix)
    return found(
        "workdir", f"{path} is writable (on {kind}; that the nodes share it shows with the first job)"
    )


async def _python(context: Context) -> Finding:
    python = context.profile.target.python or "python3"
    done = await run(context.boundary, [python, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"])
    version = done.text.strip()
    if done.code or tuple(int(n) for n in version.split(".")[:2]) < (3, 6):
        fix = "name one with `target: {python: /path}` in the profile"
        return wrong("python", f"Python 3.6 or later is needed on the target: {words(done)}", fix)
    return found("python", f"Python {version} on the target")


async def containers(boundary: Boundary, pool: Pool) -> list[Finding]:
    """The container tool and what it needs from the kernel, looked at on the login side."""
    try:
        tools = await pool.runtimes()
        name = await pool.runtime()
    except HpcshError as e:
        return [wrong("containers", e.what, e.fix)]
    other = ", ".join(f"{n} {v}" for n, v in tools.items() if n != name)
    out = [
        found(
            "containers",
            f"{name} {tools[name]} runs the images" + (f" (also here: {other})" if other else ""),
        )
    ]
    out += await _namespaces(boundary, name)
    if name == "podman":
        done = await run(boundary, ["sh", "-c", 'grep -q "^$(id -un):\\|^$(id -u):" /etc/subuid'])
        if done.code:
            fix = "ask the site for a range in /etc/subuid and /etc/subgid"
            out.append(wrong("containers.subuid", "podman needs subordinate user ids and you have none", fix))
    try:
        place = await pool.directory()
        await boundary.mkdir(place)
        done = await run(boundary, ["df", "-P", "-k", place])
        left = int(done.text.splitlines()[-1].split()[3]) >> 20
        tell = found if left >= 1 else doubtful
        out.append(tell("images.pool", f"The pool {place} has {left} GiB free"))
    except (HpcshError, ValueError, IndexError) as e:
        out.append(wrong("images.pool", f"The image pool cannot be used: {e}", "set `images: {pool: …}`"))
    return out


async def _namespaces(boundary: Boundary, name: str) -> list[Finding]:
    """User namespaces, or an apptainer that was installed setuid; /dev/fuse for mounting images."""
    setuid = False
    if name == "apptainer":
        script = (
            'd=$(apptainer buildcfg LIBEXECDIR 2>/dev/null); test -u "${d#*=}/apptainer/bin/starter-suid"'
        )
        setuid = (await run(boundary, ["sh", "-c", script])).code == 0
    if setuid:
        return [found("containers.userns", "apptainer is installed setuid")]
    done = await run(boundary, ["unshare", "--user", "--map-root-user", "true"])
    if done.code:
        fix = "ask the site to allow unprivileged user namespaces, or to install apptainer setuid"
        return [wrong("containers.userns", f"User namespaces do not work: {words(done)}", fix)]
    out = [found("containers.userns", "User namespaces work")]
    if name == "apptainer":
        done = await run(boundary, ["sh", "-c", "(exec 3<>/dev/fuse) 2>/dev/null"])
        if done.code:
            what = "/dev/fuse cannot be used: each start of a container unpacks its image first"
            out.append(doubtful("containers.fuse", what, "ask the site for /dev/fuse with mode 0666"))
        else:
            out.append(found("containers.fuse", "/dev/fuse can be used"))
    return out
