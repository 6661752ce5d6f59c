"""Being let in by an SSH server: agent, key files, then what a person must answer. Imports paramiko."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko

from hpcsh.boundary.ssh_config import Destination
from hpcsh.errors import TargetError

Question = Callable[[str, bool], str | None]
"""Ask a person from a worker thread: (prompt, echo) → answer, or None when nobody can be asked."""

TRIES = 3
KEY_KINDS = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)


class Login:
    """One authentication: what the server allows, what was tried, what a person would be needed for."""

    def __init__(self, transport: paramiko.Transport, to: Destination, ask: Question) -> None:
        self._transport, self._to, self._ask = transport, to, ask
        self._tried: list[str] = []
        self._used: set[bytes] = set()
        self._unanswered: list[str] = []

    def run(self) -> None:
        """Log in, or raise `TargetError` with what was tried and what would help."""
        try:
            allowed = self._transport.auth_none(self._to.user)
        except paramiko.BadAuthenticationType as error:
            allowed = list(error.allowed_types)
        except paramiko.SSHException as error:
            raise self._refused([], str(error)) from error
        for _ in range(4):  # a server that wants several methods says so after each
            if self._transport.is_authenticated():
                return
            before = list(allowed)
            try:
                allowed = self._step(allowed)
            except paramiko.SSHException as error:
                raise self._refused(before, str(error)) from error
            if allowed == before:
                break
        if not self._transport.is_authenticated():
            raise self._refused(allowed, "")

    def _step(self, allowed: list[str]) -> list[str]:
        """Get one method further: the methods that the server wants next, or `allowed` when none worked."""
        methods = {
            "publickey": self._keys,
            "keyboard-interactive": self._interactive,
            "password": self._password,
        }
        for name, method in methods.items():
            if name in allowed:
                further = method()
                if further is not None:
                    return further
        return allowed

    def _refused(self, allowed: list[str], words: str) -> TargetError:
        label = self._to.label
        if self._unanswered:
            return TargetError(
                f"{label} asks for something that only a person can answer",
                why=f"it asked: {'; '.join(dict.fromkeys(self._unanswered))}",
                fix="open the session from a terminal, or use a key without a passphrase or an ssh agent",
            )
        tried = ", ".join(self._tried) or "nothing: there was no key to offer"
        accepts = f"; it accepts {', '.join(allowed)}" if allowed else ""
        return TargetError(
            f"{label} does not let us in",
            why=f"tried {tried}{accepts}{f'; {words}' if words else ''}",
            fix=f"check that `ssh {self._to.alias}` works, and User and IdentityFile in ssh_config",
        )

    def _keys(self) -> list[str] | None:
        for name, key in self._candidates():
            blob = key.public_blob.key_blob if key.public_blob else key.asbytes()
            if blob in self._used:
                continue
            self._used.add(blob)
            self._tried.append(name)
            try:
                return self._transport.auth_publickey(self._to.user, key)
            except paramiko.BadAuthenticationType:
                return None
            except paramiko.AuthenticationException:
                continue
        return None

    def _candidates(self) -> Iterator[tuple[str, paramiko.PKey]]:
        """Keys to offer, the agent's first; a key file is opened only when its turn comes."""
        wanted = [blob for blob in map(_public_blob, self._to.identities) if blob]
        with contextlib.suppress(paramiko.SSHException, OSError):
            for key in paramiko.Agent().get_keys():
                if not self._to.identities_only or key.asbytes() in wanted:
                    yield f"agent key {key.comment or key.fingerprint}", key
        for path in self._to.identities:
            if _public_blob(path) not in self._used and Path(path).is_file():
                key_file = self._load(path)
                if key_file:
                    yield f"key {path}", key_file

    def _load(self, path: str) -> paramiko.PKey | None:
        """A private key of a file: asks for its passphrase, adds the certificate beside it."""
        phrase: str | None = None
        for _ in range(TRIES):
            try:
                key = _parse(path, phrase)
            except paramiko.PasswordRequiredException:
                phrase = self._answer(f"Passphrase for key {path}: ", False)
                if phrase is None:
                    return None
                continue
            except (paramiko.SSHException, OSError, ValueError) as error:
                if phrase is None:
                    self._tried.append(f"key {path} ({error})")
                    return None
                phrase = self._answer(f"Wrong. Passphrase for key {path}: ", False)
                continue
            if Path(path + "-cert.pub").is_file():
                key.load_certificate(path + "-cert.pub")
            return key
        return None

    def _answer(self, prompt: str, echo: bool) -> str | None:
        answer = self._ask(prompt, echo)
        if answer is None:
            self._unanswered.append(prompt.strip())
        return answer

    def _interactive(self) -> list[str] | None:
        """Whatever the server asks: a password, a second factor."""

        def handler(title: str, text: str, prompts: list[tuple[str, bool]]) -> list[str]:
            head = "\n".join(part.strip() for part in (title, text) if part and part.strip())
            answers = []
            for prompt, echo in prompts:
                answers.append(self._answer(f"{head}\n{prompt}" if head else prompt, echo))
                head = ""
            if None in answers:
                raise paramiko.AuthenticationException("nobody to ask")
            return [answer or "" for answer in answers]

        for _ in range(TRIES):
            self._tried.append("keyboard-interactive")
            try:
                return self._transport.auth_interactive(self._to.user, handler)
            except paramiko.BadAuthenticationType:
                return None
            except paramiko.AuthenticationException:
                if self._unanswered:
                    return None
        return None

    def _password(self) -> list[str] | None:
        for _ in range(TRIES):
            answer = self._answer(f"Password for {self._to.label}: ", False)
            if answer is None:
                return None
            self._tried.append("password")
            try:
                return self._transport.auth_password(self._to.user, answer, fallback=False)
            except paramiko.BadAuthenticationType:
                return None
            except paramiko.AuthenticationException:
                continue
        return None


def _parse(path: str, phrase: str | None) -> paramiko.PKey:
    """A private key, whatever its kind."""
    last: Exception = paramiko.SSHException("unknown kind of key")
    for kind in KEY_KINDS:
        try:
            return kind.from_private_key_file(path, phrase)
        except paramiko.PasswordRequiredException:
            raise
        except (paramiko.SSHException, ValueError) as error:
            last = error
    raise last


def _public_blob(path: str) -> bytes:
    """The public key beside a private one; empty when there is none."""
    try:
        return paramiko.pkey.PublicBlob.from_file(path + ".pub").key_blob
    except (OSError, ValueError, IndexError):
        return b""
