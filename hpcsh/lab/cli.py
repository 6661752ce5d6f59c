"""The command line of `hpcsh lab`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from hpcsh.errors import INTERRUPTED, OK, HpcshError
from hpcsh.lab import paths
from hpcsh.lab.progress import Progress


def main(argv: list[str]) -> int:
    """Run `hpcsh lab` with the arguments after it; the exit code."""
    options = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except HpcshError as e:
        print(f"hpcsh lab: {e}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("hpcsh lab: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hpcsh lab", description="A real Slurm and PRRTE cluster on this machine.", allow_abbrev=False
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(command=command)
        return added

    up = verb("up", _up, "build the image if needed and bring the lab up")
    up.add_argument("--nodes", type=int, help="compute nodes (3, or as many as the lab had)")
    down = verb("down", _down, "end the lab; what it stored is kept")
    status = verb("status", _status, "show what the lab is and what it can do")
    status.add_argument("--json", action="store_true", help="for programs")
    remove = verb("rm", _remove, "end the lab and delete what it stored")
    for one in (up, down, status, remove):
        one.add_argument("name", nargs="?", default=paths.DEFAULT, metavar="NAME", help="which lab (default)")
    shell = verb("shell", _shell, "a login shell on a node")
    shell.add_argument("node", nargs="?", default="login", metavar="NODE", help="login, n1, n2 …")
    shell.add_argument("--user", default="alice", help="as whom (alice)")
    execute = verb("exec", _exec, "run a command on a node")
    execute.add_argument("node", metavar="NODE", help="login, n1, n2 …")
    execute.add_argument("--user", default="root", help="as whom (root)")
    execute.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD", help="what to run")
    logs = verb("logs", _logs, "show the last lines of the services' logs")
    logs.add_argument("service", nargs="?", metavar="SERVICE", help="without it, their names")
    logs.add_argument("-n", "--lines", type=int, default=50, help="how many lines of each file (50)")
    for one in (shell, execute, logs):
        one.add_argument("--lab", default=paths.DEFAULT, metavar="NAME", help="which lab (default)")
    image = verb("image", _image, "build the image now, say where it is, or remove old ones")
    image.add_argument("action", choices=("build", "path", "prune"))
    return parser


def _up(options: argparse.Namespace) -> int:
    from hpcsh.lab.cluster import Lab

    lab = Lab(options.name)
    if lab.up(Progress(), options.nodes):
        print(f"Lab {options.name} is up with {lab.settings().nodes} nodes.")
    else:
        print(f"Lab {options.name} is already up.")
    print(f"  ssh -F {paths.ssh_config(options.name)} login")
    return OK


def _down(options: argparse.Namespace) -> int:
    from hpcsh.lab.cluster import Lab

    ended = Lab(options.name).down(Progress())
    print(f"Lab {options.name} is down." if ended else f"Lab {options.name} was not up.")
    return OK


def _remove(options: argparse.Namespace) -> int:
    from hpcsh.lab.cluster import Lab

    removed = Lab(options.name).remove(Progress())
    print(f"Lab {options.name} is removed." if removed else f"There was no lab {options.name}.")
    return OK


def _status(options: argparse.Namespace) -> int:
    from hpcsh.lab import status

    found = status.collect(options.name)
    print(json.dumps(found, indent=2) if options.json else status.as_text(found))
    return OK


def _shell(options: argparse.Namespace) -> int:
    from hpcsh.lab.cluster import Lab

    return Lab(options.lab).run(options.node, ["bash", "-l"], options.user)


def _exec(options: argparse.Namespace) -> int:
    from hpcsh.errors import UsageError
    from hpcsh.lab.cluster import Lab

    argv = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
    if not argv:
        raise UsageError("There is no command to run.", fix="hpcsh lab exec n1 -- hostname")
    return Lab(options.lab).run(options.node, argv, options.user)


def _logs(options: argparse.Namespace) -> int:
    from hpcsh.lab import logs

    logs.show(options.lab, options.service, options.lines)
    return OK


def _image(options: argparse.Namespace) -> int:
    from hpcsh.lab import image, requirements

    if options.action == "prune":
        for removed in image.prune(Progress()):
            print(f"removed {removed}")
        return OK
    if options.action == "build":
        requirements.check(build=not image.is_built())
    found = image.ensure(Progress()) if options.action == "build" else image.current()
    print(found.rootfs)
    return OK
