"""A machine over SSH as a target: one connection, one session channel, one agent."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from hpcsh.boundary import bootstrap
from hpcsh.boundary.client import AgentBoundary
from hpcsh.boundary.ssh_config import Destination, check_host, check_user, resolve
from hpcsh.boundary.transport import CLOSE_TIMEOUT, HIGH_WATER, KEEP_ERRORS, Lost, Receive, Transport
from hpcsh.errors import TargetError

if TYPE_CHECKING:
    import paramiko

    from hpcsh.boundary.ssh_connect import Dialer

T = TypeVar("T")
Ask = Callable[[str, bool], Awaitable[str]]

READ = 256 * 1024
KEEPALIVE = 15.0


class SSHBoundary(AgentBoundary):
    """A machine over SSH.

    `host` is a name that ssh_config may explain. `ssh_config` is a file to read instead of ~/.ssh/config and
    the system's. `python` is tried on the target before the usual names. `ask(prompt, echo)` answers
    passwords, passphrases and second factors; without it a server that asks is a `TargetError`.
    Host keys are always checked against known_hosts and never added.
    """

    def __init__(
        self,
        host: str,
        *,
        user: str | None = None,
        port: int | None = None,
        ssh_config: str | None = None,
        python: str | None = None,
        ask: Ask | None = None,
    ) -> None:
        check_host(host)
        if user is not None:
            check_user(user)
        if python is not None:
            bootstrap.check_python(python)
        super().__init__(f"{user}@{host}" if user else host, python=python)
        self._where = (host, user, port, ssh_config)
        self._ask = ask

    def _transport(self) -> Transport:
        host, user, port, config = self._where
        to = resolve(host, user=user, port=port, config=config)
        self.name = to.label
        return SSHTransport(to, bootstrap.command(self._python), config, self._ask)


class SSHTransport:
    """The agent's streams over an SSH session channel; paramiko blocks, so each direction has a thread."""

    keepalive = KEEPALIVE

    def __init__(self, to: Destination, command: str, config: str | None, ask: Ask | None) -> None:
        self._to, self._command, self._config, self._ask = to, command, config, ask
        self._loop = asyncio.get_running_loop()
        self._dialer: Dialer | None = None
        self._channel: paramiko.Channel | None = None
        self._questions: set[asyncio.Task[str]] = set()
        self._out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._closing = False
        self._waiting = 0
        self._lock = threading.Lock()
        self._room = asyncio.Event()
        self._room.set()
        self._ended = asyncio.Event()
        self.status: int | None = None
        self.errors = b""

    async def start(self, receive: Receive, lost: Lost) -> None:
        """Connect, log in and start the command."""
        channel = await self._in_thread(self._dial)
        self._channel = channel
        for work in (lambda: self._read(channel, receive, lost), lambda: self._drain_errors(channel),
                     lambda: self._send(channel)):  # fmt: skip
            threading.Thread(target=work, name=f"ssh {self._to.alias}", daemon=True).start()

    def _dial(self) -> paramiko.Channel:
        """In a thread: everything up to the running command."""
        import paramiko  # heavy: only when used

        from hpcsh.boundary.ssh_connect import PACKET, WINDOW, Dialer

        self._dialer = Dialer(self._config, self._question)
        if self._closing:  # before there was something to close
            self._dialer.abandon()
        transport = self._dialer.dial(self._to)
        try:
            channel = transport.open_session(WINDOW, PACKET, timeout=self._to.timeout)
            channel.exec_command(self._command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise TargetError(f"{self._to.label} does not start a command", why=str(error)) from error
        return channel

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run a blocking call in a thread of its own: one that hangs must not keep Python from exiting."""
        done: asyncio.Future[T] = self._loop.create_future()

        def finish(result: T | None, error: BaseException | None) -> None:
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def body() -> None:
            result, failed = None, None
            try:
                result = work()
            except BaseException as error:
                failed = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(finish, result, failed)

        threading.Thread(target=body, name=f"ssh {self._to.alias}", daemon=True).start()
        return await done

    def _question(self, prompt: str, echo: bool) -> str | None:
        """In a thread: ask through the loop, where the front end lives."""
        if self._ask is None:
            return None
        return asyncio.run_coroutine_threadsafe(self._put_question(prompt, echo), self._loop).result()

    async def _put_question(self, prompt: str, echo: bool) -> str:
        assert self._ask is not None
        task = asyncio.ensure_future(self._ask(prompt, echo))
        self._questions.add(task)
        try:
            return await task
        finally:
            self._questions.discard(task)

    def _read(self, channel: paramiko.Channel, receive: Receive, lost: Lost) -> None:
        """In a thread: the agent's output, to its end. Credit bounds what waits for the loop."""
        with contextlib.suppress(OSError, EOFError):
            while data := channel.recv(READ):
                self._loop.call_soon_threadsafe(receive, data)
        channel.status_event.wait(1)  # the exit status may come after the end of the output
        status = channel.exit_status if channel.exit_status >= 0 else None
        transport = channel.get_transport()
        broken = transport is None or not transport.is_active()

        def end() -> None:
            self.status = status
            self._ended.set()
            self._room.set()
            lost("the SSH connection broke" if broken else "the agent ended")

        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(end)

    def _drain_errors(self, channel: paramiko.Channel) -> None:
        """In a thread: standard error shares the channel's window and must be read."""
        with contextlib.suppress(OSError, EOFError):
            while data := channel.recv_stderr(READ):
                self.errors = (self.errors + data)[-KEEP_ERRORS:]

    def _send(self, channel: paramiko.Channel) -> None:
        """In a thread: what `write` queued, until None."""
        with contextlib.suppress(OSError, EOFError):
            while (data := self._out.get()) is not None:
                channel.sendall(data)
                with self._lock:
                    self._waiting -= len(data)
                    low = self._waiting <= HIGH_WATER // 2
                if low and not self._room.is_set():
                    with contextlib.suppress(RuntimeError):
                        self._loop.call_soon_threadsafe(self._room.set)
            channel.shutdown_write()

    def write(self, data: bytes) -> None:
        """Send bytes, without waiting."""
        with self._lock:
            self._waiting += len(data)
            full = self._waiting > HIGH_WATER
        if full and not self._ended.is_set():
            self._room.clear()
        self._out.put(data)

    async def drain(self) -> None:
        """Wait until there is room to send more."""
        await self._room.wait()

    async def close(self, *, patient: bool) -> None:
        """End the agent's input, give it the time it needs to end its processes, then disconnect."""
        self._closing = True
        for task in list(self._questions):
            task.cancel()
        self._out.put(None)
        if self._channel is not None and not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT if patient else 0):
                    await self._ended.wait()
        await self._in_thread(self._hang_up)

    def _hang_up(self) -> None:
        """In a thread: disconnect. A login shell that has not become the agent would stay: end it."""
        if self._channel is not None and not self._ended.is_set():
            from hpcsh.boundary.ssh_connect import send_signal

            asking = threading.Thread(target=send_signal, args=(self._channel, "TERM"), daemon=True)
            asking.start()
            asking.join(1)  # a dead connection may take nothing any more
        if self._dialer is not None:
            self._dialer.abandon()
