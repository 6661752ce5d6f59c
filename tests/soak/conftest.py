"""The long tier: deselected unless `-m soak` asks for it; what a whole run did is written to docs/soak.md."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Iterator

import pytest

from tests.conftest import HPCSH, ROOT, missing
from tests.front.conftest import hpcsh  # noqa: F401
from tests.soak.soak_report import KEY, Report
from tests.soak.soak_tools import FLOOR, SEED

PROFILE = """\
engine: {engine}
target: {{lab: {lab}}}
resources: {{account: science, partition: debug, time: "10"}}
poll: {{floor: {floor:g}}}
"""


def wanted(config: pytest.Config) -> bool:
    """Whether this run was asked for the long tier by name."""
    return "soak" in config.getoption("markexpr").split()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[KEY] = Report(SEED)


def pytest_report_header(config: pytest.Config) -> str | None:
    return f"soak: HPCSH_SOAK_SEED={SEED} runs it again" if wanted(config) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if wanted(config):
        return
    ours = [item for item in items if "soak" in item.keywords and item.get_closest_marker("soak")]
    if ours:
        items[:] = [item for item in items if item not in ours]
        config.hook.pytest_deselected(items=ours)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.get_closest_marker("soak"):
        item.config.stash[KEY].add(item.name, report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    report = config.stash[KEY]
    if report.rows:
        terminalreporter.section("soak")
        terminalreporter.write_line(report.page())
        if report.complete:
            (ROOT / "docs" / "soak.md").write_text(report.page())


@pytest.fixture
def counts(request: pytest.FixtureRequest) -> dict[str, object]:
    """What a test has to say in the report: name → figure."""
    return request.config.stash[KEY].row(request.node.name).counts


@pytest.fixture(scope="session")
def lab() -> Iterator[str]:
    """The lab of the long tier, `soak` unless HPCSH_TEST_LAB names another; one named soak is taken down."""
    name = os.environ.setdefault("HPCSH_TEST_LAB", "soak")
    done = subprocess.run([*HPCSH, "lab", "up", name], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        missing("lab", done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    yield name
    if name == "soak":
        subprocess.run([*HPCSH, "lab", "down", name], check=True, capture_output=True)


@pytest.fixture(scope="module")
def places(lab: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Configuration, store and session host of a module's own, for command lines and for this process."""
    from hpcsh.lab.paths import state_root

    base = tmp_path_factory.mktemp("hpcsh")
    profiles = base / "config" / "hpcsh" / "profiles"
    profiles.mkdir(parents=True)
    for name, engine in (("jobs", "virtual_node"), ("mpi", "pmix")):
        (profiles / f"{name}.yaml").write_text(PROFILE.format(engine=engine, lab=lab, floor=FLOOR))
    own = {
        "HPCSH_LAB_STATE": str(state_root()),
        "XDG_CONFIG_HOME": str(base / "config"),
        "XDG_STATE_HOME": str(base / "state"),
        "HPCSH_RUNTIME_DIR": str(base / "run"),
        "HPCSH_PROFILE": "jobs",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        yield dict(os.environ)
        for words in (("clean", "--all", "-y"), ("-P", "mpi", "clean", "--all", "-y"), ("host", "stop")):
            subprocess.run([sys.executable, "-m", "hpcsh", *words], capture_output=True, check=False)
