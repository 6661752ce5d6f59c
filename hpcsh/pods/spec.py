"""The parts of Kubernetes' core/v1 that a pod manifest is made of, as typed structs.

A field typed `Any` is known to Kubernetes and has no effect here (or is refused by name, see `check`);
a field that Kubernetes does not know is an error, as with `kubectl --validate=strict`.
Source: https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/
"""

from __future__ import annotations

from typing import Any

import msgspec


class Base(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Strict about names, spelled as Kubernetes spells them."""


class Metadata(Base, frozen=True, forbid_unknown_fields=False):
    """ObjectMeta; what a server adds (`resourceVersion`, `managedFields` …) is of no interest here."""

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    labels: dict[str, str | None] = {}
    annotations: dict[str, str | None] = {}


class KeyRef(Base, frozen=True):
    """configMapKeyRef and secretKeyRef."""

    name: str
    key: str
    optional: bool = False


class FieldRef(Base, frozen=True):
    """A field of the pod itself."""

    field_path: str
    api_version: str = "v1"


class ResourceFieldRef(Base, frozen=True):
    """A resource of a container, in units of `divisor`."""

    resource: str
    container_name: str = ""
    divisor: str | int = "0"


class ValueFrom(Base, frozen=True):
    """Where the value of a variable comes from; exactly one."""

    config_map_key_ref: KeyRef | None = None
    secret_key_ref: KeyRef | None = None
    field_ref: FieldRef | None = None
    resource_field_ref: ResourceFieldRef | None = None
    file_key_ref: Any = None


class EnvVar(Base, frozen=True):
    """One variable."""

    name: str
    value: str | None = None
    value_from: ValueFrom | None = None


class SourceRef(Base, frozen=True):
    """A whole ConfigMap or Secret, for envFrom."""

    name: str
    optional: bool = False


class EnvFrom(Base, frozen=True):
    """All keys of a ConfigMap or a Secret."""

    prefix: str = ""
    config_map_ref: SourceRef | None = None
    secret_ref: SourceRef | None = None


class KeyToPath(Base, frozen=True):
    """One key of a ConfigMap or Secret volume, and the file it becomes."""

    key: str
    path: str
    mode: int | None = None


class ConfigMapVolume(Base, frozen=True):
    """A ConfigMap as files."""

    name: str = ""
    items: tuple[KeyToPath, ...] = ()
    default_mode: int = 0o644
    optional: bool = False


class SecretVolume(Base, frozen=True):
    """A Secret as files."""

    secret_name: str = ""
    items: tuple[KeyToPath, ...] = ()
    default_mode: int = 0o644
    optional: bool = False


class EmptyDir(Base, frozen=True):
    """Scratch space of the pod; `medium` "Memory" is a tmpfs."""

    medium: str = ""
    size_limit: str | int | None = None


class HostPath(Base, frozen=True):
    """A path of the node. `type` "" checks only that it exists."""

    path: str
    type: str = ""


class Volume(Base, frozen=True):
    """A volume. One that names no kind is an emptyDir, as Kubernetes defaults it."""

    name: str
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    empty_dir: EmptyDir | None = None
    host_path: HostPath | None = None


class VolumeMount(Base, frozen=True):
    """Where a volume appears in a container."""

    name: str
    mount_path: str
    read_only: bool = False
    sub_path: str = ""
    sub_path_expr: str = ""
    mount_propagation: str = "None"
    recursive_read_only: Any = None


class ResourceRequirements(Base, frozen=True):
    """What a container may use and what it asks for."""

    limits: dict[str, str | int | float] = {}
    requests: dict[str, str | int | float] = {}
    claims: Any = None


class Container(Base, frozen=True):
    """A container or an init container."""

    name: str
    image: str = ""
    image_pull_policy: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    env: tuple[EnvVar, ...] = ()
    env_from: tuple[EnvFrom, ...] = ()
    volume_mounts: tuple[VolumeMount, ...] = ()
    resources: ResourceRequirements = ResourceRequirements()
    security_context: dict[str, Any] | None = None
    restart_policy: str = ""
    volume_devices: Any = None
    lifecycle: Any = None
    liveness_probe: Any = None
    readiness_probe: Any = None
    startup_probe: Any = None
    ports: Any = None
    resize_policy: Any = None
    restart_policy_rules: Any = None
    stdin: Any = None
    stdin_once: Any = None
    tty: Any = None
    termination_message_path: Any = None
    termination_message_policy: Any = None


class PodSpec(Base, frozen=True):
    """What a pod is."""

    containers: tuple[Container, ...]
    init_containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()
    restart_policy: str = ""
    termination_grace_period_seconds: int = 30
    active_deadline_seconds: int | None = None
    service_account_name: str = ""
    host_network: bool = False
    resources: Any = None
    ephemeral_containers: Any = None
    affinity: Any = None
    automount_service_account_token: Any = None
    dns_config: Any = None
    dns_policy: Any = None
    enable_service_links: Any = None
    host_aliases: Any = None
    host_ipc: Any = msgspec.field(default=None, name="hostIPC")
    host_pid: Any = msgspec.field(default=None, name="hostPID")
    host_users: Any = None
    hostname: Any = None
    hostname_override: Any = None
    image_pull_secrets: Any = None
    node_name: Any = None
    node_selector: Any = None
    os: Any = None
    overhead: Any = None
    preemption_policy: Any = None
    priority: Any = None
    priority_class_name: Any = None
    readiness_gates: Any = None
    resource_claims: Any = None
    runtime_class_name: Any = None
    scheduler_name: Any = None
    scheduling_gates: Any = None
    security_context: Any = None
    service_account: Any = None
    set_hostname_as_fqdn: Any = msgspec.field(default=None, name="setHostnameAsFQDN")
    share_process_namespace: Any = None
    subdomain: Any = None
    tolerations: Any = None
    topology_spread_constraints: Any = None


class Pod(Base, frozen=True):
    """v1 Pod."""

    api_version: str
    kind: str
    spec: PodSpec
    metadata: Metadata = Metadata()
    status: Any = None


class ConfigMap(Base, frozen=True):
    """v1 ConfigMap."""

    api_version: str
    kind: str
    metadata: Metadata = Metadata()
    data: dict[str, str | None] = {}
    binary_data: dict[str, str | None] = {}
    immutable: Any = None


class Secret(Base, frozen=True):
    """v1 Secret."""

    api_version: str
    kind: str
    metadata: Metadata = Metadata()
    data: dict[str, str | None] = {}
    string_data: dict[str, str | None] = {}
    type: str = "Opaque"
    immutable: Any = None
