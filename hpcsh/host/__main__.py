"""`python -m hpcsh.host [--foreground]`: the session host. Front ends start it by themselves."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys

from hpcsh.errors import HpcshError


def _say(fd: int | None, answer: bytes) -> None:
    """Tell the front end that waits, if one does."""
    if fd is not None:
        with contextlib.suppress(OSError):
            os.write(fd, answer)
            os.close(fd)


def main() -> int:
    """Run the host; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m hpcsh.host", description=__doc__)
    parser.add_argument("--foreground", action="store_true", help="stay in this terminal (systemd)")
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    fd: int | None = options.ready_fd
    if fd is not None:
        os.set_inheritable(fd, False)
    from hpcsh.host import process

    if not options.foreground:
        process.detach()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with contextlib.suppress(OSError):
        os.chdir(os.path.expanduser("~"))
    try:
        asyncio.run(process.serve(lambda: _say(fd, b"ready")))
    except HpcshError as e:
        from hpcsh.serving.frames import Failure, pack

        logging.getLogger("hpcsh.host").error("%s", e)
        _say(fd, pack(Failure(0, e.kind, e.what, e.why, e.fix, e.exit_code)))
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
