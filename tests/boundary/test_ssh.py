"""What only SSH has: login shells, noise, host keys, ways of being let in, and servers that die."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpcsh.boundary import bootstrap, ssh
from hpcsh.boundary.host_keys import fingerprint, known_keys
from hpcsh.boundary.ssh import SSHBoundary
from hpcsh.errors import TargetError, UsageError
from tests.boundary.sshd_server import Sshd, Users, descendants, is_sshd, keygen, processes_with

NOISE = "printf 'welcome to the cluster\\n'; printf '\\000\\001\\377hpcsh-agent-\\n'; echo error >&2; "
MEGABYTES = "head -c 3000000 /dev/urandom; head -c 3000000 /dev/urandom >&2; "
SHELLS = {
    "bash": ("bash", {".bashrc": NOISE + MEGABYTES, ".profile": NOISE}),
    "bash-traps": ("bash", {".bashrc": "set -x; alias exec=false sh=false; cd /; umask 077; stty -echo\n"}),
    "tcsh": ("tcsh", {".cshrc": "set noclobber\nset echo verbose\necho welcome\nsetenv FROM cshrc\n"}),
    "csh": ("csh", {".login": "echo login\n", ".cshrc": "echo welcome; alias sh false\n"}),
    "fish": ("fish", {".config/fish/config.fish": "echo welcome; function exec; false; end\n"}),
    "sh": ("sh", {}),
}


def command(*argv: str | Path) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def owner(pid: str) -> str:
    with contextlib.suppress(OSError, KeyError):
        return Path(f"/proc/{pid}").owner()
    return ""


@contextlib.asynccontextmanager
async def opened(sshd: Sshd, user: str = "", *more: str, **options: object):  # type: ignore[no-untyped-def]
    target = SSHBoundary("target", ssh_config=sshd.config(user, *more), **options)  # type: ignore[arg-type]
    try:
        await target.open()
        yield target
    finally:
        await target.close()


@pytest.mark.parametrize("shell", SHELLS)
async def test_login_shells(sshd: Sshd, users: Users, shell: str) -> None:
    user = users.add(*SHELLS[shell])
    async with opened(sshd, user) as target:
        assert (await target.identity())[0] == user
        assert target.name == f"{user}@target"
        words = ["a b", "it's", "$HOME!`x`", "two\nlines", ""]
        done = await target.run(["printf", "%s\\0", *words], timeout=20)
        assert done.text.split("\0")[:-1] == words
        done = await target.run(["bash", "-c", "echo $0; pwd"], timeout=20, cwd="/")
        assert (done.stdout, done.stderr) == (b"bash\n/\n", b"")  # no start file is read again
        data = os.urandom(200_000)
        await target.write(f"{await target.home()}/file", data)
        assert await target.read(f"{await target.home()}/file") == data


async def test_permissions_are_those_of_the_user(sshd: Sshd, users: Users) -> None:
    async with opened(sshd, users.add("sh", {})) as target:
        with pytest.raises(Exception, match="Permission denied") as caught:
            await target.read("/etc/shadow")
        assert "cannot read /etc/shadow" in str(caught.value)


async def test_a_shell_that_refuses_is_quoted(sshd: Sshd, users: Users) -> None:
    user = users.add("bash", {".bashrc": "echo 'Your account has expired.' >&2; exit 3\n"})
    with pytest.raises(TargetError, match=r"exit status 3\)[^$]*Your account has expired"):
        async with opened(sshd, user):
            pass


async def test_a_shell_that_hangs(sshd: Sshd, users: Users) -> None:
    user = users.add("bash", {".bashrc": "echo choose a project:; sleep 1000\n"})
    target = SSHBoundary("target", ssh_config=sshd.config(user))
    target.start_timeout = 1
    with pytest.raises(TargetError, match=r"did not answer within 1 s[^$]*choose a project"):
        await target.open()
    await target.close()
    for _ in range(100):
        left = [pid for pid in os.listdir("/proc") if pid.isdigit() and owner(pid) == user]
        if not left:
            break
        await asyncio.sleep(0.05)
    assert left == []


async def test_no_python(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "PYTHONS", ("python-that-is-not-there", "/usr/bin/false"))
    with pytest.raises(TargetError, match=r"no Python 3.6 or later[^$]*that-is-not-there[^$]*`python`"):
        async with opened(sshd):
            pass
    async with opened(sshd, python=sys.executable) as target:
        assert (await target.run(["true"], timeout=20)).code == 0


async def test_the_channels_of_one_connection_are_one(sshd: Sshd, tmp_path: Path) -> None:
    """`MaxSessions 2` (see the fixture) is enough for a hundred follows and thirty processes."""
    (tmp_path / "log").write_text("x")
    async with opened(sshd) as target:
        follows = [target.follow(str(tmp_path / "log")) for _ in range(100)]
        for follow in follows:
            assert (await anext(follow)).data == b"x"
        runs = [target.run(["sh", "-c", "sleep 0.2; echo y"], timeout=60) for _ in range(30)]
        assert {done.text for done in await asyncio.gather(*runs)} == {"y\n"}
        for follow in follows:
            await follow.aclose()


async def test_a_killed_sshd_fails_all_that_waits(own_sshd: Sshd) -> None:
    target = SSHBoundary("target", ssh_config=own_sshd.config())
    mark = f"HPCSH_TEST_{os.urandom(8).hex()}"
    sleep = ["sleep", "1000"]
    waits = [asyncio.create_task(target.run(sleep, env={mark: "1"}, timeout=1000)) for _ in range(5)]
    while len(processes_with(mark)) < 5:
        await asyncio.sleep(0.02)
    follow = target.follow("/nowhere")
    assert (await anext(follow)).event == "waiting"
    waits.append(asyncio.create_task(anext(follow)))
    own_sshd.kill()
    results = await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), 10)
    assert [type(result) for result in results] == [TargetError] * 6
    assert "lost the connection to root@target" in str(results[0])
    for _ in range(500):
        if not processes_with(mark):
            break
        await asyncio.sleep(0.02)
    assert processes_with(mark) == {}  # the agent has noticed too
    with pytest.raises(TargetError, match="refused"):
        await target.run(["true"], timeout=20)
    own_sshd.start()
    assert (await target.run(["true"], timeout=20)).code == 0
    await target.close()


async def test_a_silent_connection_is_noticed(own_sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh.SSHTransport, "keepalive", 0.2)
    async with opened(own_sshd) as target:
        await asyncio.sleep(1)  # answers to the pings keep it open
        running = asyncio.create_task(target.run(["sleep", "1000"], timeout=1000))
        await asyncio.sleep(0.1)
        assert own_sshd.process
        stopped = [pid for pid in descendants(own_sshd.process.pid) if is_sshd(pid)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(TargetError, match="no sign of life"):
                await asyncio.wait_for(running, 20)
        finally:
            for pid in stopped:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGCONT)


# Host keys


async def test_an_unknown_host_is_refused_with_its_fingerprint(own_sshd: Sshd) -> None:
    own_sshd.known_hosts.write_text("other.example ssh-ed25519 AAAA\n")
    key = own_sshd.folder / "host.pub"
    shown = command("ssh-keygen", "-lf", key).split()[1]
    with pytest.raises(TargetError) as caught:
        async with opened(own_sshd):
            pass
    text = str(caught.value)
    assert "is not known" in text
    assert shown in text
    assert f"ssh-keyscan -p {own_sshd.port} 127.0.0.1 >> {own_sshd.known_hosts}" in text
    assert own_sshd.known_hosts.read_text() == "other.example ssh-ed25519 AAAA\n"


async def test_a_changed_host_key_names_file_and_line(own_sshd: Sshd, tmp_path: Path) -> None:
    keygen(tmp_path / "other")
    kind, key = (tmp_path / "other.pub").read_text().split()[:2]
    own_sshd.known_hosts.write_text(f"# a\n\n[127.0.0.1]:{own_sshd.port} {kind} {key}\n")
    with pytest.raises(TargetError) as caught:
        async with opened(own_sshd):
            pass
    assert "has changed" in str(caught.value)
    assert f"{own_sshd.known_hosts}:3" in str(caught.value)
    with pytest.raises(TargetError, match="has changed"):  # whatever ssh_config says
        async with opened(own_sshd, "", "StrictHostKeyChecking no"):
            pass


async def test_hashed_revoked_and_several_kinds(own_sshd: Sshd, tmp_path: Path) -> None:
    """known_hosts as ssh-keygen hashes it; a revoked key; a server with more kinds of key than are known."""
    command("ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", own_sshd.folder / "rsa")
    own_sshd.kill()
    own_sshd.options["HostKey"] += f"\nHostKey {own_sshd.folder}/rsa"
    own_sshd.start()
    kind, key = (own_sshd.folder / "rsa.pub").read_text().split()[:2]
    line = f"[127.0.0.1]:{own_sshd.port} {kind} {key}\n"
    own_sshd.known_hosts.write_text(line)
    command("ssh-keygen", "-H", "-f", own_sshd.known_hosts)
    assert "127.0.0.1" not in own_sshd.known_hosts.read_text()
    async with opened(own_sshd) as target:
        assert (await target.run(["true"], timeout=20)).code == 0
    own_sshd.known_hosts.write_text(line + "@revoked * " + line.partition(" ")[2])
    with pytest.raises(TargetError, match="revoked"):
        async with opened(own_sshd):
            pass


def test_known_hosts_patterns(tmp_path: Path) -> None:
    expected = {
        "a.example": [1], "n.b.example": [1], "n.c.example": [2], "x.c.example": [], "d.example": [],
        "[d.example]:2222": [3], "aXexample": [],
    }  # fmt: skip
    file = tmp_path / "known"
    file.write_text(
        "a.example,*.b.example ssh-ed25519 AAAA\n!x.c.example,*.c.example ssh-rsa AAAA\n"
        "[d.example]:2222 ssh-rsa AAAA\nbroken\n@cert-authority *.e.example ssh-rsa AAAA\n"
    )

    def lines(host: str) -> list[int]:
        return [known.line for known in known_keys([str(file), "/not/there"], host)]

    assert {host: lines(host) for host in expected} == expected
    assert fingerprint(b"").startswith("SHA256:47DEQpj8HBSa")


# Being let in


async def test_a_password_is_asked_for(own_sshd: Sshd, users: Users) -> None:
    user = users.add("sh", {}, password="right one")
    asked: list[tuple[str, bool]] = []

    async def ask(prompt: str, echo: bool) -> str:
        asked.append((prompt, echo))
        return "wrong" if len(asked) == 1 else "right one"

    own_sshd.kill()
    own_sshd.options["AuthorizedKeysFile"] = "none"
    own_sshd.start()
    async with opened(own_sshd, user, ask=ask) as target:
        assert (await target.identity())[0] == user
    assert len(asked) == 2
    assert asked[0] == (f"Password for {user}@target: ", False)
    with pytest.raises(TargetError, match=r"only a person can answer[^$]*Password"):
        async with opened(own_sshd, user):
            pass


async def test_two_factors(own_sshd: Sshd, users: Users) -> None:
    user = users.add("sh", {}, password="second")
    own_sshd.kill()
    own_sshd.options["AuthenticationMethods"] = "publickey,password"
    own_sshd.start()

    async def ask(prompt: str, echo: bool) -> str:
        return "second"

    async with opened(own_sshd, user, ask=ask) as target:
        assert (await target.identity())[0] == user


async def test_a_key_with_a_passphrase(own_sshd: Sshd) -> None:
    command("ssh-keygen", "-q", "-p", "-N", "a phrase", "-f", own_sshd.folder / "client")
    prompts = []

    async def ask(prompt: str, echo: bool) -> str:
        prompts.append(prompt)
        return "a phrase" if len(prompts) > 1 else "wrong"

    async with opened(own_sshd, ask=ask) as target:
        assert (await target.run(["true"], timeout=20)).code == 0
    assert len(prompts) == 2
    assert str(own_sshd.folder / "client") in prompts[0]


async def test_an_agent(own_sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["ssh-agent", "-a", str(tmp_path / "agent"), "-D"]
    agent = await asyncio.create_subprocess_exec(*words, stdout=subprocess.DEVNULL)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    try:
        while not (tmp_path / "agent").exists():
            await asyncio.sleep(0.02)
        command("ssh-add", "-q", own_sshd.folder / "client")
        (own_sshd.folder / "client").unlink()
        async with opened(own_sshd) as target:
            assert (await target.run(["true"], timeout=20)).code == 0
    finally:
        agent.terminate()
        await agent.wait()


async def test_who_is_not_let_in(own_sshd: Sshd, tmp_path: Path) -> None:
    keygen(tmp_path / "stranger")
    config = Path(own_sshd.config())
    config.write_text(config.read_text().replace(f"{own_sshd.folder}/client", str(tmp_path / "stranger")))
    own_sshd.kill()
    own_sshd.options["PasswordAuthentication"] = "no"
    own_sshd.start()
    target = SSHBoundary("target", ssh_config=str(config))
    with pytest.raises(TargetError, match=r"does not let us in[^$]*stranger"):
        await target.open()
    await target.close()


# Ways to get there


async def test_through_other_hosts(sshd: Sshd) -> None:
    config = Path(sshd.config())
    relay = (
        "import os,socket,sys,threading\n"
        "s=socket.create_connection((sys.argv[1],int(sys.argv[2])))\n"
        "def up():\n  while d:=os.read(0,65536): s.sendall(d)\n"
        "threading.Thread(target=up,daemon=True).start()\n"
        "while d:=s.recv(65536): os.write(1,d)\n"
    )
    (sshd.folder / "relay.py").write_text(relay)
    shared = config.read_text().partition("\n")[2].replace("HostName 127.0.0.1", "")
    (sshd.folder / "jumps").write_text(
        "Host jump1 jump2 command\n HostName 127.0.0.1\n"
        f"Host far\n HostName localhost\n ProxyJump jump1,jump2\n HostKeyAlias [127.0.0.1]:{sshd.port}\n"
        f"Host command\n ProxyCommand {sys.executable} {sshd.folder}/relay.py %h %p\nHost *\n{shared}"
    )
    (sshd.folder / "including").write_text(f"Include {sshd.folder}/jumps\nPort 1\n")
    for name in ("far", "command"):
        async with SSHBoundary(name, ssh_config=str(sshd.folder / "including")) as target:
            data = os.urandom(1_000_000)
            assert (await target.run(["cat"], stdin=data, timeout=20)).stdout == data
    assert not [p for p in descendants(os.getpid()) if "relay" in Path(f"/proc/{p}/cmdline").read_text()]


@pytest.mark.parametrize(
    ("host", "options"),
    [("-oProxyCommand=x", {}), ("a\nb", {}), ("a b", {}), ("", {}), ("a;b", {}), ("h", {"user": "-l"}),
     ("h", {"user": "a\x07"}), ("h", {"user": "a`b`"}), ("h", {"user": ""}), ("h", {"python": "x;y"})],
)  # fmt: skip
def test_names_that_are_no_names(host: str, options: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        SSHBoundary(host, **options)  # type: ignore[arg-type]


async def test_a_config_that_leads_to_no_name(tmp_path: Path) -> None:
    for line in ("HostName -oProxyCommand=x", "Port 70000", "User a;b", "ProxyJump -x"):
        (tmp_path / "config").write_text(f"Host h\n {line}\n")
        with pytest.raises(UsageError):
            await SSHBoundary("h", ssh_config=str(tmp_path / "config")).open()
    with pytest.raises(UsageError, match="does not exist"):
        await SSHBoundary("h", ssh_config=str(tmp_path / "none")).open()


async def test_a_server_that_says_nothing_can_be_given_up(tmp_path: Path) -> None:
    seen: list[asyncio.StreamWriter] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer)
        while await reader.read(1000):
            pass
        seen.append(writer)

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        (tmp_path / "config").write_text("")
        target = SSHBoundary("127.0.0.1", port=port, ssh_config=str(tmp_path / "config"))
        calls = [asyncio.create_task(target.run(["true"], timeout=100)) for _ in range(3)]
        while not seen:
            await asyncio.sleep(0.02)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        async with asyncio.timeout(10):
            while len(seen) < 2:  # the other side sees the end of the connection
                await asyncio.sleep(0.02)
        assert len({id(writer) for writer in seen}) == 1  # three calls, one attempt
        await target.close()


async def test_one_failed_attempt_is_shared(own_sshd: Sshd) -> None:
    own_sshd.kill()
    target = SSHBoundary("target", ssh_config=own_sshd.config())
    results = await asyncio.gather(*(target.home() for _ in range(20)), return_exceptions=True)
    assert {type(result) for result in results} == {TargetError}
    assert len({id(result) for result in results}) == 1


def test_importing_the_boundary_is_light() -> None:
    names = ["ssh", "local", "nested", "client", "host_keys", "ssh_config", "bootstrap"]
    program = f"import sys; [__import__('hpcsh.boundary.' + n) for n in {names!r}]; print(*sys.modules)"
    assert "paramiko" not in command(sys.executable, "-c", program).split()
