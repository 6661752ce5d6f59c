"""What a failed pull means and what to do, from the words of registries, apptainer, podman and the system."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import Any

from hpcsh.errors import CommandError, HpcshError, NotFoundError

_RULES: tuple[tuple[str, str, str], ...] = (
    (
        r"HTTP 40[13]|unauthorized|authentication required|denied|no basic auth",
        "The registry does not let you read {subject}.",
        "log in on the cluster once: `apptainer registry login docker://REGISTRY` (or podman login); "
        "some registries say this also when the image does not exist",
    ),
    (
        r"HTTP 404|manifest unknown|name unknown|not found in registry|repository name not known",
        "There is no image {subject} in its registry.",
        "check the name and the tag",
    ),
    (
        r"HTTP 429|toomanyrequests|rate limit",
        "The registry's rate limit is reached for {subject}.",
        "wait, or log in on the cluster",
    ),
    (
        r"no space left on device|disk quota exceeded|write error.*space",
        "The disk is full: {subject} could not be stored.",
        "free space there, or set `images: {{pool: …}}` in the profile to another file system",
    ),
    (
        r"HTTP response to HTTPS client|wrong[ _]version[ _]number|record layer failure",
        "The registry of {subject} does not speak TLS.",
        "add HOST:PORT to `images: {{plain_http: […]}}` in the profile, if you trust the network",
    ),
    (
        r"certificate verify failed|x509:",
        "The certificate of the registry of {subject} cannot be verified.",
        "install the registry's certificate authority on the cluster",
    ),
    (
        r"connection refused|errno 111",
        "Nothing answers at the registry of {subject}.",
        "check the host and the port; is the registry running?",
    ),
    (
        r"name or service not known|no such host|temporary failure in name resolution|nodename nor servname",
        "The registry of {subject} cannot be found.",
        "check the host name; the cluster may have no way to the outside",
    ),
    (
        r"timed out|i/o timeout|network is unreachable|no route to host",
        "The registry of {subject} cannot be reached from the cluster.",
        "set https_proxy in the profile's `setup:`, or copy the image to the cluster and name it by its path",
    ),
    (
        r"no image for linux/",
        "{subject} is not made for this machine.",
        "choose a tag for this architecture",
    ),
    (
        r"user namespace|operation not permitted.*clone|newuidmap|subuid",
        "The container tool may not make a user namespace on the cluster.",
        "`hpcsh doctor` looks at what is missing",
    ),
)  # fmt: skip


def explained(subject: str, error: Mapping[str, Any]) -> HpcshError:
    """The error for a person; `why` keeps the tool's own words."""
    words = _without_secrets(str(error.get("words", "")).strip())
    name = subject or "the image"
    if error.get("errno") == errno.ENOENT or (
        error.get("file") and re.search(r"no such file or directory", words, re.I)
    ):
        return NotFoundError(
            f"There is no file {error.get('file') or name} on the cluster.",
            why=words,
            fix="name a file on the cluster",
        )
    if error.get("errno") in (errno.ENOSPC, errno.EDQUOT):
        words = f"no space left on device: {words}"
    for pattern, what, fix in _RULES:
        if re.search(pattern, words, re.I):
            if "disk is full" in what and error.get("free") is not None:
                words += f"\nFree on the pool's file system: {int(error['free']) >> 20} MiB"
            return CommandError(
                what.format(subject=name), why=words, fix=fix.replace("{{", "{").replace("}}", "}")
            )
    return CommandError(f"{name} could not be brought into the pool.", why=words or "It gave no reason.")


def _without_secrets(text: str) -> str:
    """Registries' answers may repeat a token from a redirect's address."""
    return re.sub(r"(?i)((?:token|signature|x-amz-[a-z-]+|sig|password)=)[^&\s\"]+", r"\1…", text)
