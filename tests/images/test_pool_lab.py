"""The pool on the lab: real registries, real tools, real failures."""

# ruff: noqa: E501

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from hpcsh.boundary.ssh import SSHBoundary
from hpcsh.errors import CommandError, HpcshError, NotFoundError, UsageError
from hpcsh.images.pool import Pool
from hpcsh.images.runtime import rank_argv
from hpcsh.lab.paths import ssh_config
from hpcsh.model import Progress
from hpcsh.profiles import parse

pytestmark = pytest.mark.lab

BUSYBOX = "docker://login:5000/busybox:latest"
PYTHON = "docker://login:5000/python:latest"


class Place:
    """Pools in a directory of the test's own."""

    def __init__(self, boundary: SSHBoundary, root: str) -> None:
        self.boundary = boundary
        self.root = root

    def pool(self, directory: str = "pool", extra: str = "", plain: str = "login:5000") -> Pool:
        text = f"engine: virtual_node\ntarget: {{lab: x}}\nimages: {{pool: '{self.root}/{directory}', "
        return Pool(self.boundary, parse(f"{text}plain_http: ['{plain}']{extra}}}".encode(), "t", "t"))

    async def shell(self, command: str) -> str:
        done = await self.boundary.run(["bash", "-c", f"cd {self.root}; {command}"], timeout=120)
        assert done.code == 0, (command, done.text, done.error_text)
        return done.text

    async def leftovers(self, directory: str = "pool") -> list[str]:
        listed = await self.shell(
            f"ls -A {directory}/.tmp 2>/dev/null; pgrep -u alice -fa '{self.root}' | grep -v pgrep; true"
        )
        return [line for line in listed.splitlines() if "bash -c cd" not in line]


@pytest.fixture
async def place(lab: str) -> AsyncIterator[Place]:
    async with SSHBoundary("login", ssh_config=str(ssh_config(lab))) as boundary:
        root = f"{await boundary.home()}/pool-{uuid.uuid4().hex[:8]}"
        await boundary.mkdir(root)
        yield Place(boundary, root)
        await boundary.run(["chmod", "-R", "u+rwX", root], timeout=60)
        await boundary.remove(root, recursive=True)


async def pulled(pool: Pool, text: str) -> list[Progress]:
    return [step async for step in pool.pull(text)]


async def test_pull_tells_stages_and_true_bytes(place: Place) -> None:
    pool = place.pool()
    steps = await pulled(pool, PYTHON)
    assert (steps[0].status, steps[-1].status) == ("start", "done")
    assert {s.step for s in steps} == {PYTHON}
    said = " ".join(s.message for s in steps)
    for stage in ("fetch", "unpack", "write"):
        assert stage in said
    (image,) = await pool.images()
    information = await place.boundary.stat(image.path)
    assert information is not None
    assert (information.size, steps[-1].done) == (image.size, image.size)
    assert image.digest.startswith("sha256:")
    assert image.reference == PYTHON
    assert await place.leftovers() == []
    again = await pulled(pool, "login:5000/python")
    assert "was there already" in again[-1].message
    assert len(again) == 2


async def test_a_plan_names_the_file_that_a_pull_then_makes(place: Place) -> None:
    pool = place.pool()
    reference = await pool.reference(BUSYBOX)
    before = await pool.locate(reference)
    assert not before.present
    assert not await place.boundary.stat(before.image.path)
    fetched = await pool.fetch(before)
    assert (fetched.present, fetched.image.path) == (True, before.image.path)
    assert fetched.image.size > 100_000
    after = await pool.locate(reference)
    assert after.present
    assert (after.image.path, after.config) == (before.image.path, before.config)
    always = await pool.locate(reference, policy="Always")
    assert (always.present, always.image.path) == (True, before.image.path)


async def test_two_pulls_of_one_image_make_one(place: Place) -> None:
    one, two = await asyncio.gather(pulled(place.pool(), PYTHON), pulled(place.pool(), PYTHON))
    assert sorted("already" in steps[-1].message for steps in (one, two)) == [False, True]
    assert len(await place.pool().images()) == 1
    assert await place.leftovers() == []


@pytest.mark.parametrize("tool", ["apptainer", "podman"])
async def test_a_cancelled_pull_leaves_nothing(place: Place, tool: str) -> None:
    pool = place.pool(extra=f", runtime: {tool}")
    async with aclosing(pool.pull(PYTHON)) as steps:
        async for step in steps:
            if "fetch" in step.message or "unpack" in step.message:
                break
    assert await pool.images() == []
    assert await place.leftovers() == []
    assert (await pulled(pool, PYTHON))[-1].status == "done"
    assert await place.leftovers() == []


async def test_what_a_killed_pull_left_is_removed_by_the_next(place: Place) -> None:
    entry = await place.pool().locate(await place.pool().reference(BUSYBOX))
    name = entry.image.path.rsplit("/", 1)[1].removesuffix(".sif")
    await place.shell(f"mkdir -p pool/.tmp/{name}.elsewhere.1/a; chmod 0 pool/.tmp/{name}.elsewhere.1/a")
    await pulled(place.pool(), BUSYBOX)
    assert await place.leftovers() == []


@pytest.mark.parametrize(
    ("text", "plain", "what"),
    [
        ("login:5000/no/such", "login:5000", "There is no image"),
        ("login:5000/busybox:nope", "login:5000", "There is no image"),
        ("login:5000/busybox", "other:1", "does not speak TLS"),
        ("login:5999/busybox", "login:5999", "Nothing answers"),
        ("nowhere.invalid/x", "", "cannot be found"),
    ],
)
async def test_errors_have_the_tools_words_and_their_meaning(
    place: Place, text: str, plain: str, what: str
) -> None:
    with pytest.raises(CommandError, match=what) as caught:
        await pulled(place.pool(plain=plain), text)
    assert caught.value.why
    assert caught.value.fix
    assert not await place.boundary.stat(f"{place.root}/pool/.tmp") or await place.leftovers() == []


async def test_a_registry_that_asks_for_a_login(place: Place) -> None:
    """A server of the test's own answers 401, as a private registry does."""
    server = (
        "import http.server as h\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(401); self.send_header('WWW-Authenticate', 'Basic realm=x'); self.end_headers()\n"
        "    def log_message(self, *a): pass\n"
        "s = h.HTTPServer(('127.0.0.1', 0), H); print(s.server_port, flush=True); s.serve_forever()\n"
    )
    async with place.boundary.stream(["python3", "-c", server]) as process:
        port = int((await anext(aiter(process.output())))[1])
        with pytest.raises(CommandError, match="does not let you read") as caught:
            await pulled(place.pool(plain=f"127.0.0.1:{port}"), f"127.0.0.1:{port}/private/x")
        assert "401" in caught.value.why


async def test_files_on_the_cluster(place: Place) -> None:
    pool = place.pool()
    await pulled(pool, BUSYBOX)
    (busybox,) = await pool.images()
    await place.shell(
        f"cp {busybox.path} own.sif; mkdir w; cd w; "
        "skopeo copy -q --src-tls-verify=false docker://login:5000/busybox oci-archive:../oci.tar:x; "
        "skopeo copy -q --src-tls-verify=false docker://login:5000/busybox docker-archive:../docker.tar:x"
    )
    for text in (f"{place.root}/oci.tar", f"docker-archive:{place.root}/docker.tar", f"{place.root}/own.sif"):
        steps = await pulled(pool, text)
        assert steps[-1].status == "done", text
        assert "already" in (await pulled(pool, text))[-1].message
    assert len(await pool.images()) == 4
    in_place = await pool.locate(await pool.reference(f"{place.root}/own.sif"))
    assert (in_place.present, in_place.image.path) == (True, f"{place.root}/own.sif")
    for entry in await pool.images():
        said = await place.shell(f"apptainer -s exec {entry.path} echo works")
        assert said == "works\n"
    with pytest.raises(NotFoundError):
        await pulled(pool, f"{place.root}/none.sif")
    await place.shell("echo nonsense > broken.tar")
    with pytest.raises(CommandError, match="could not be brought"):
        await pulled(pool, f"oci-archive:{place.root}/broken.tar")
    with pytest.raises(CommandError, match="could not be brought"):
        await pulled(pool, f"{place.root}/broken.tar")
    assert await place.leftovers() == []


async def test_a_full_disk(place: Place, lab: str) -> None:
    """A pool on a small tmpfs of a user namespace of the test's own."""
    pool = place.pool()
    entry = await pool.locate(await pool.reference(PYTHON))
    import json

    from hpcsh.images import remote

    request = {
        **entry.resolved, "verb": "pull", "canonical": PYTHON, "runtime": "apptainer", "pool": f"{place.root}/small",
    }  # fmt: skip
    await place.boundary.write(f"{place.root}/part.py", remote.source().encode())
    script = 'mount -t tmpfs -o size=4m none small && exec python3 part.py "$0"'
    done = await place.boundary.run(
        ["unshare", "-Urm", "bash", "-c", f"cd {place.root}; mkdir small; {script}", json.dumps(request)],
        timeout=120,
    )
    from hpcsh.images.errors import explained

    error = json.loads(done.text.splitlines()[-1])["error"]
    said = explained(PYTHON, error)
    assert "disk is full" in said.what
    assert "Free on" in said.why


async def test_a_pool_that_cannot_be_written(place: Place) -> None:
    await place.shell("mkdir pool; chmod 500 pool")
    with pytest.raises(HpcshError) as caught:
        await pulled(place.pool(), BUSYBOX)
    assert "Permission denied" in str(caught.value)


async def test_bad_references_reach_no_tool(place: Place) -> None:
    with pytest.raises(UsageError):
        await pulled(place.pool(), "busybox;rm -rf /")
    assert not await place.boundary.stat(f"{place.root}/pool")


@pytest.mark.parametrize("tool", ["apptainer", "podman"])
async def test_a_rank_shares_what_it_must(place: Place, tool: str) -> None:
    pool = place.pool(extra=f", runtime: {tool}")
    await pulled(pool, BUSYBOX)
    (image,) = await pool.images()
    script = 'echo "$1|$PMIX_X|$OMPI_Y"; cat f; [ -e /tmp/hpcsh-rank-test ] && echo tmp; readlink /proc/self/ns/pid'
    argv = rank_argv(image, ["sh", "-c", script, "_", "it's $HOME"])
    await place.shell("echo here > f; touch /tmp/hpcsh-rank-test")
    env = {"PMIX_X": "a b", "OMPI_Y": "it's"}
    done = await place.boundary.run(argv, env=env, cwd=place.root, timeout=60)
    namespace = await place.shell("rm /tmp/hpcsh-rank-test; readlink /proc/self/ns/pid")
    if tool == "podman":  # its namespace stays open for the next rank
        await place.shell(
            "for f in {/tmp,/dev/shm}/hpcsh-podman-$UID/libpod/tmp/pause.pid; do "
            '[ ! -e "$f" ] || kill "$(cat "$f")" 2>/dev/null; rm -rf "${f%/libpod*}"; done; true'
        )
    assert (done.text, done.error_text) == (f"it's $HOME|a b|it's\nhere\ntmp\n{namespace}", "")
