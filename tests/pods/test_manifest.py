"""From bytes to a plan: what is understood, what is refused by name, and what is warned of."""

# A table of cases reads better with one a line.
# ruff: noqa: E501

from __future__ import annotations

import base64
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcsh.errors import UsageError
from hpcsh.pods import env, manifest, quantity
from hpcsh.pods.annotations import parse_flags
from hpcsh.pods.plan import ContainerPlan, PodPlan, plan

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "pods"


def planned(text: str | bytes, **options: Any) -> PodPlan:
    data = text.encode() if isinstance(text, str) else text
    return plan(manifest.parse(data, "f.yaml"), "f.yaml", id="abcdefgh", uid="u-1", **options)


def document(container: dict[str, Any] | None = None, **spec: Any) -> str:
    main = {
        "name": "c",
        "image": "x",
        "resources": {"limits": {"cpu": 1, "memory": "1Gi"}},
        **(container or {}),
    }
    whole = {"restartPolicy": "Never", "containers": [main], **spec}
    annotations = whole.pop("annotations", {})
    metadata = {"name": "p", "annotations": annotations, "labels": {"app": "demo"}}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": whole})


def with_values(pod: str, kind: str = "ConfigMap", name: str = "v", **data: str) -> str:
    field = "data" if kind == "ConfigMap" else "stringData"
    values = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, field: data}
    return json.dumps(values) + "\n---\n" + pod


def only(p: PodPlan) -> ContainerPlan:
    (container,) = p.containers
    return container


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_examples_are_understood_without_a_warning(path: Path) -> None:
    assert planned(path.read_bytes(), base_cpus=True, base_memory=True).warnings == ()


REFUSED = {
    "two pods": (document() + "\n---\n" + document(), "2 Pods"),
    "no pod": ("", "0 Pods"),
    "another kind": ("apiVersion: apps/v1\nkind: Deployment\n", "apps/v1 Deployment"),
    "no kind": ("a: b", "apiVersion or kind"),
    "a list": ("[1]", "list"),
    "unknown field": (document({"comand": ["x"]}), r"spec.containers\[0\].comand"),
    "unknown spec field": (document(restartpolicy="Never"), "restartpolicy"),
    "volume kind": (document(volumes=[{"name": "v", "nfs": {}}]), "nfs"),
    "claim": (document(volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]), "persistentVolumeClaim"),
    "several kinds": (document(volumes=[{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]), "several kinds"),
    "number as text": (document({"env": [{"name": "A", "value": 1}]}), r"env\[0\].value"),
    "boolean as text": ("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: x, "
                        "args: [yes]}]}", r"args\[0\]"),
    "name": (document({"name": "hello world"}), "hello world"),
    "name with path": (document({"name": "../x"}), r"\.\./x"),
    "long name": (document({"name": "x" * 64}), "not valid"),
    "twice": (document(initContainers=[{"name": "c", "image": "x"}]), "two containers"),
    "no image": (document({"image": " "}), "no image"),
    "no containers": (document(containers=[]), "empty"),
    "env name": (document({"env": [{"name": "my.var", "value": "x"}]}), r"my\.var"),
    "NUL": (document({"args": ["a\0b"]}), "NUL"),
    "too long": (document({"args": ["x" * 140_000]}), "140000 bytes"),
    "empty command": (document({"command": ["", "x"]}), "empty word"),
    "value twice": (document({"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]}),
                    "both value"),
    "field": (document({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]}), "podIP"),
    "no map": (document({"envFrom": [{"configMapRef": {"name": "gone"}}]}), "no ConfigMap 'gone'"),
    "no secret": (document({"envFrom": [{"secretRef": {"name": "gone"}}]}), "no Secret 'gone'"),
    "mount of nothing": (document({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}), "no such volume"),
    "relative mount": (document({"volumeMounts": [{"name": "v", "mountPath": "v"}]},
                                volumes=[{"name": "v"}]), "absolute"),
    "dots in mount": (document({"volumeMounts": [{"name": "v", "mountPath": "/a/../b"}]},
                               volumes=[{"name": "v"}]), r"\.\."),
    "dots in subPath": (document({"volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": "../b"}]},
                                 volumes=[{"name": "v"}]), r"\.\."),
    "same mountPath": (document({"volumeMounts": [{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/a/"}]},
                                volumes=[{"name": "v"}]), "twice"),
    "Bidirectional": (document({"volumeMounts": [
        {"name": "v", "mountPath": "/a", "mountPropagation": "Bidirectional"}]}, volumes=[{"name": "v"}]),
        "Bidirectional"),
    "hostPath type": (document(volumes=[{"name": "v", "hostPath": {"path": "/x", "type": "Nonsense"}}]), "Nonsense"),
    "medium": (document(volumes=[{"name": "v", "emptyDir": {"medium": "HugePages"}}]), "HugePages"),
    "resource": (document({"resources": {"limits": {"gpu.intel.com/i915": 1}}}), "gpu.intel.com"),
    "quantity": (document({"resources": {"limits": {"memory": "1GB"}}}), "1GB"),
    "negative": (document({"resources": {"limits": {"cpu": "-1"}}}), "negative"),
    "half a GPU": (document({"resources": {"limits": {"nvidia.com/gpu": "500m"}}}), "part of a GPU"),
    "request above limit": (document({"resources": {"limits": {"cpu": 1}, "requests": {"cpu": 2}}}), "more than"),
    "policy": (document(restartPolicy="Sometimes"), "Sometimes"),
    "sidecar": (document(initContainers=[{"name": "i", "image": "x", "restartPolicy": "Always"}]), "restartPolicy"),
    "postStart": (document({"lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}), "postStart"),
    "ephemeral": (document(ephemeralContainers=[{"name": "e"}]), "ephemeralContainers"),
    "mpi": (document(annotations={"slurm-job.vk.io/mpi-flags": "-x"}), "mpi-flags"),
    "flags newline": (document(annotations={"slurm-job.vk.io/flags": "-t 1\n#SBATCH --uid=0"}), "newline"),
    "flags word": (document(annotations={"slurm-job.vk.io/flags": "rm -rf /"}), "'rm'"),
    "output": (document(annotations={"slurm-job.vk.io/flags": "-o /tmp/x"}), "--output"),
    "array": (document(annotations={"slurm-job.vk.io/flags": "--array=1-3"}), "--array"),
    "options": (document(annotations={"slurm-job.vk.io/singularity-options": "'unclosed"}), "split"),
    "base64": (json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "%%"}})
               + "\n---\n" + document(), r"data\.k is not base64"),
    "key with slash": (with_values(document(), **{"a/b": "x"}), "a/b"),
    "dots in key": (with_values(document(), **{"..": "x"}), "no valid key"),
    "namespace": (document(metadata=None), "metadata"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_by_name(case: str) -> None:
    text, word = REFUSED[case]
    if case == "namespace":
        text = text.replace('"metadata": null, ', "").replace(
            '"name": "p"', '"name": "p", "namespace": "../../"'
        )
        word = r"\.\./\.\./"
    with pytest.raises(UsageError, match=word) as caught:
        planned(text)
    assert str(caught.value).startswith("f.yaml")


def test_a_secret_is_not_repeated_in_an_error() -> None:
    text = with_values(document(), "Secret", "s").replace(
        '"stringData": {}', '"data": {"k": "plain-canary!"}'
    )
    with pytest.raises(UsageError) as caught:
        planned(text)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
            f"{b}: &{b} [{','.join('*' + a for _ in range(9))}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "[" * 10_000, "a: &a [*a]", "a: {b: 1, b: 2}", "1: 2", "a: b: c", "\x00", "- &a !!python/object:os.system x",
        "x" * (5 << 20),
    ],
    ids=["laughs", "deep", "itself", "twice", "number key", "syntax", "control", "object", "large"],
)  # fmt: skip
def test_hostile_yaml_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"f\.yaml"):
        planned(text)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_manifest_or_a_usage_error(data: bytes) -> None:
    with pytest.raises(UsageError):
        planned(data)


def test_lists_several_documents_and_nulls() -> None:
    pod = json.loads(document(volumes=[{"name": "v", "emptyDir": None}], affinity=None))
    values = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "v"}, "data": {"a": None}}
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [values, pod]})
    assert planned(text).directories == ("emptyDirs/v",)
    typed = json.dumps(
        {"apiVersion": "v1", "kind": "PodList", "items": [{k: pod[k] for k in ("metadata", "spec")}]}
    )
    assert planned(typed).name == "p"


def test_yaml_as_kubernetes_reads_it() -> None:
    text = """
apiVersion: v1
kind: ConfigMap
metadata: {name: v}
data: {date: 2001-01-01, sexagesimal: 1:30, block: "a\\nb"}
---
apiVersion: v1
kind: Pod
metadata: {generateName: p-}
spec:
  restartPolicy: Never
  containers: [{name: c, image: x, envFrom: [{configMapRef: {name: v}, prefix: V_}]}]
"""
    p = planned(text)
    assert dict(only(p).env) == {"V_date": "2001-01-01", "V_sexagesimal": "1:30", "V_block": "a\nb"}
    assert p.name == "p-abcde"


def test_what_has_no_effect_is_told() -> None:
    text = document(
        {"livenessProbe": {"exec": {}}, "tty": True, "securityContext": {"privileged": True}},
        nodeSelector={"a": "b"}, tolerations=[{"key": "x"}], hostname="h", dnsPolicy="ClusterFirst",
        annotations={"slurm-job.vk.io/flavor": "gpu", "slurm-job.knoc.io/flags": "-t 10", "other/any": "x"},
        volumes=[{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}],
    )  # fmt: skip
    said = "\n".join(planned(text).warnings)
    for word in ("livenessProbe", "tty", "securityContext.privileged", "nodeSelector, tolerations", "hostname",
                 "flavor", "knoc.io/flags is the old name", "sizeLimit"):  # fmt: skip
        assert word in said, word
    assert "other/any" not in said
    assert planned(text).resources.time == "10"


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("$(A)", "1"), ("$$(A)", "$(A)"), ("$(NOPE)", "$(NOPE)"), ("a$(A)b$(B)c", "a1b2c"), ("$", "$"),
        ("$$", "$"), ("$$$(A)", "$1"), ("$$$$(A)", "$$(A)"), ("$(A", "$(A"), ("$()", "$()"), ("$A ${A}", "$A ${A}"),
        ("$(A)$", "1$"), ("$( A)", "$( A)"), ("$(date)", "$(date)"),
    ],
)  # fmt: skip
def test_expansion_as_kubernetes_does_it(text: str, result: str) -> None:
    known = {"A": env.Text("1"), "B": env.Text("2", secret=True)}
    assert env.expand(text, known).value == result
    assert env.expand(text, known).secret == ("$(B)" in text)


@given(st.text())
def test_escaped_text_comes_back_as_it_was(text: str) -> None:
    assert env.expand(text.replace("$", "$$"), {"A": env.Text("x")}).value == text


def test_env_in_order_with_every_source() -> None:
    values = with_values(document(), a="from map", both="map", bad_key="x", **{"not.a.name": "y"})
    secret = json.dumps({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
        "data": {"k": base64.b64encode(b"hid\xff").decode()}, "stringData": {"both": "secret"},
    })  # fmt: skip
    container = {
        "envFrom": [{"configMapRef": {"name": "v"}}, {"secretRef": {"name": "s"}, "prefix": "S_"},
                    {"secretRef": {"name": "gone", "optional": True}}],
        "env": [
            {"name": "both", "value": "env"}, {"name": "EARLY", "value": "$(LATE)"}, {"name": "LATE", "value": "$(a)!"},
            {"name": "REF", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "v", "key": "zz", "optional": True}}},
            {"name": "MIX", "value": "<$(S_both)>"}, {"name": "EMPTY"},
            {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "NS", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            {"name": "UID_", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        ],
    }  # fmt: skip
    p = planned(secret + "\n---\n" + values.split("\n---\n")[0] + "\n---\n" + document(container))
    c = only(p)
    assert dict(c.env) == {
        "a": "from map", "both": "env", "bad_key": "x", "S_k": "hid\udcff", "S_both": "secret", "EARLY": "$(LATE)",
        "LATE": "from map!", "REF": "hid\udcff", "MIX": "<secret>", "EMPTY": "", "NAME": "p", "NS": "default",
        "UID_": "u-1", "APP": "demo", "MEM": "1024",
    }  # fmt: skip
    assert c.secret_env == {"S_k", "S_both", "REF", "MIX"}
    assert any("not.a.name" in w for w in p.warnings)


def test_a_secret_in_args_is_marked_and_told() -> None:
    container = {"args": ["--token=$(KEY)"], "envFrom": [{"secretRef": {"name": "v"}}]}
    p = planned(with_values(document(container), "Secret", KEY="canary"))
    assert only(p).entry.args == ("--token=canary",)
    assert only(p).entry.secret
    assert any("process list" in w for w in p.warnings)
    assert not any("canary" in w for w in p.warnings)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("100m", Fraction(1, 10)), ("0.5", Fraction(1, 2)), ("1e3", 1000), ("1E", 10**18), ("1Ei", 2**60),
     ("1.5Gi", 1610612736), (".5", Fraction(1, 2)), ("5.", 5), ("128Mi", 128 << 20), ("1k", 1000), (2, 2), (1.5, 1.5),
     ("1E3", 1000)],
)  # fmt: skip
def test_quantities(text: str, value: Any) -> None:
    assert quantity.parse(text, "x") == value


@pytest.mark.parametrize("text", ["", "1GB", "one", "1Ki2", "--1", "1e999", "١", "0x10", "1 Gi", "Gi"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(UsageError):
        quantity.parse(text, "x")


def limits(**values: Any) -> dict[str, Any]:
    return {"resources": {"limits": {k.replace("_", "-"): v for k, v in values.items()}}}


@pytest.mark.parametrize(
    ("main", "init", "cpus", "memory"),
    [
        ([("500m", "100Mi"), ("700m", "50Mi")], [], 2, 150),
        ([("1", "100Mi")], [("4", "50Mi"), ("2", "300Mi")], 4, 300),
        ([("1500m", "1Gi"), ("1500m", "1Gi")], [("2", "1Gi")], 3, 2048),
        ([("100m", "1")], [], 1, None),
    ],
)
def test_resources_are_summed_and_init_containers_counted_as_kubernetes_does(
    main: list[tuple[str, str]], init: list[tuple[str, str]], cpus: int, memory: int | None
) -> None:
    def make(prefix: str, rows: list[tuple[str, str]]) -> list[dict[str, Any]]:
        return [
            {"name": f"{prefix}{i}", "image": "x", **limits(cpu=c, memory=m)} for i, (c, m) in enumerate(rows)
        ]

    p = planned(document(containers=make("m", main), initContainers=make("i", init)))
    assert p.resources.cpus_per_task == cpus
    assert p.resources.memory == (1 if memory is None else memory << 20)


def test_requests_count_where_there_is_no_limit_and_defaults_are_told() -> None:
    requests = {"resources": {"requests": {"cpu": "3", "memory": "2Gi"}}}
    assert planned(document(requests)).resources.memory == 2 << 30
    p = planned(document({"resources": {}}))
    assert (p.resources.cpus_per_task, p.resources.memory) == (1, 1 << 30)
    assert sum("reserved" in w for w in p.warnings) == 2
    quiet = planned(document({"resources": {}}), base_cpus=True, base_memory=True)
    assert (quiet.resources.cpus_per_task, quiet.resources.memory, quiet.warnings) == (None, None, ())


def test_gpus_become_gres_unless_the_flags_say_so() -> None:
    gpu = {"resources": {"limits": {"cpu": 1, "memory": "1Gi", "nvidia.com/gpu": 2}}}
    p = planned(document(gpu))
    assert "--gres=gpu:2" in p.resources.flags
    assert only(p).gpus == "nvidia"
    p = planned(document(gpu, annotations={"slurm-job.vk.io/flags": "--gres=gpu:a100:1"}))
    assert p.resources.flags == ("--gres=gpu:a100:1",)


def test_flags_as_the_original_splits_them() -> None:
    text = '--job-name="a b" -t 2800 --ntasks=8 -N1 --mem-per-cpu 2000 --exclusive -p x'
    assert parse_flags(text, "w") == {
        "job-name": "a b", "time": "2800", "ntasks": "8", "nodes": "1", "mem-per-cpu": "2000", "exclusive": None,
        "partition": "x",
    }  # fmt: skip


def test_the_seeds_annotation() -> None:
    flags = "--job-name=test-pod-cfg -t 2800  --ntasks=8 --nodes=1 --mem-per-cpu=2000"
    p = planned(document(annotations={"slurm-job.vk.io/flags": flags}))
    assert (p.resources.job_name, p.resources.time, p.resources.nodes) == ("test-pod-cfg", "2800", "1")
    assert p.resources.flags == ("--ntasks=8",)  # the containers' memory counts, not --mem-per-cpu
    assert any("--mem-per-cpu does not count" in w for w in p.warnings)
    p = planned(document({"resources": {}}, annotations={"slurm-job.vk.io/flags": flags}))
    assert (p.resources.memory, "--mem-per-cpu=2000" in p.resources.flags) == (None, True)


def test_other_annotations() -> None:
    p = planned(document(annotations={
        "slurm-job.vk.io/singularity-options": "--fakeroot --env 'A=b c'",
        "slurm-job.vk.io/singularity-mounts": "--bind /a:/b,/c -B /d:/e:ro /f",
        "slurm-job.vk.io/image-root": "docker://", "slurm-job.vk.io/pre-exec": "module load x\n",
    }))  # fmt: skip
    assert p.options == ("--fakeroot", "--env", "A=b c")
    assert p.extra_mounts == ("/a:/b", "/c", "/d:/e:ro", "/f")
    assert (p.image_root, p.pre_exec) == ("docker://", "module load x\n")


def test_volumes() -> None:
    container = {"volumeMounts": [
        {"name": "e", "mountPath": "/cfg/deep"}, {"name": "v", "mountPath": "/cfg"},
        {"name": "v", "mountPath": "/one", "subPath": "a"}, {"name": "v", "mountPath": "/cfg/over", "subPath": "a"},
        {"name": "h", "mountPath": "/h", "subPathExpr": "$(WHO)/x"}, {"name": "m", "mountPath": "/m"},
    ], "env": [{"name": "WHO", "value": "me"}]}  # fmt: skip
    volumes = [
        {"name": "v", "configMap": {"name": "v", "defaultMode": 0o400}}, {"name": "e", "emptyDir": {}},
        {"name": "h", "hostPath": {"path": "/data/", "type": "Directory"}},
        {"name": "m", "emptyDir": {"medium": "Memory"}},
        {"name": "o", "secret": {"secretName": "gone", "optional": True}},
    ]  # fmt: skip
    p = planned(with_values(document(container, volumes=volumes), a="1", b="2"))
    assert [(m.source, m.target, m.read_only) for m in only(p).mounts] == [
        ("configMaps/v", "/cfg", True), ("emptyDirs/e", "/cfg/deep", False), ("configMaps/v/a", "/cfg/over", True),
        ("/data/me/x", "/h", False), ("local/memory/m", "/m", False), ("configMaps/v/a", "/one", True),
    ]  # fmt: skip
    assert [(f.path, f.data, f.mode) for f in p.files] == [
        ("configMaps/v/a", b"1", 0o400), ("configMaps/v/b", b"2", 0o400),
    ]  # fmt: skip
    assert p.directories == (
        "configMaps/v", "emptyDirs/e", "local/memory/m", "secrets/o", "/data/me/x", "configMaps/v/deep",
    )  # fmt: skip
    assert p.placeholders == ("configMaps/v/over",)


def test_a_secrets_files_are_for_the_owner_alone() -> None:
    volumes = [{"name": "s", "secret": {"secretName": "v", "defaultMode": 0o644}}]
    p = planned(with_values(document(volumes=volumes), "Secret", k="x"))
    assert [(f.mode, f.secret) for f in p.files] == [(0o600, True)]


@given(st.lists(st.sampled_from(["/a", "/a/b", "/a/b/c", "/b", "/ab", "/a/bc"]), unique=True, min_size=1))
def test_the_order_of_mounts_does_not_matter(targets: list[str]) -> None:
    def mounts(order: list[str]) -> Any:
        named = {t: f"v{i}" for i, t in enumerate(sorted(targets))}
        found = [{"name": named[t], "mountPath": t} for t in order]
        return only(
            planned(document({"volumeMounts": found}, volumes=[{"name": n} for n in sorted(named.values())]))
        )

    ordered = mounts(targets).mounts
    assert ordered == mounts(targets[::-1]).mounts
    seen: list[str] = []
    for mount in ordered:
        assert not any(other.startswith(mount.target + "/") for other in seen)
        seen.append(mount.target)
