"""A real Slurm of four nodes for the tests of this directory, and a small study to run on it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from support.filesystems import Mounts

ROOT = Path(__file__).parent.parent.parent
DEVCLUSTER = ROOT / "slurm" / "devcluster" / "devcluster"
NEEDED = ["slurmctld", "slurmd", "munged", "slurmdbd", "mariadbd"]

LONGEST = ("test_ranks", "test_submission")
"""The modules that take longest. They start first, so that no process is left alone with them in the end."""

HANG_S = 900
"""What takes longer hangs, however slow and busy the machine is."""

CLUSTERS = {"cluster", "cluster_on_gluster", "cluster_without_accounting", "strict_site"}
"""The fixtures below."""

TINY_MODEL = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "dtype": "bfloat16",
}  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """A running development cluster."""

    environment: dict[str, str]

    def control(self, *arguments: str) -> None:
        """Run one of the devcluster script's commands: crash, revive, kill-slurmd, …"""
        subprocess.run([DEVCLUSTER, *arguments], env=self.environment, check=True, timeout=HANG_S)

    def ask(self, *command: str) -> str:
        """Run one of Slurm's commands and return what it says."""
        done = subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True, timeout=HANG_S)
        return done.stdout

    @property
    def version(self) -> tuple[int, ...]:
        """Slurm's: (24, 11, 5)."""
        return tuple(map(int, self.ask("sinfo", "--version").split()[1].split("-")[0].split(".")))

    def jobs(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """`python -m jobs …` on the login node."""
        command = [sys.executable, "-m", "jobs", *map(str, arguments)]
        return subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False
        )

    def status(self, results: Path) -> list[dict[str, Any]]:
        """`python -m jobs status --json`."""
        found: list[dict[str, Any]] = json.loads(self.jobs("status", results, "--json").stdout)
        return found

    def wait(self, what: str, condition: Callable[[], Any], timeout_s: float = HANG_S) -> Any:
        """Wait until the condition holds, and return it; pauses leave the machine to the jobs."""
        end = time.monotonic() + timeout_s
        while True:
            asked = time.monotonic()
            if found := condition():
                return found
            assert asked < end, f"gave up after {timeout_s} s waiting for {what}"
            time.sleep(min(2, max(0.3, 2 * (time.monotonic() - asked))))

    @contextlib.contextmanager
    def configured(self, *lines: str) -> Iterator[None]:
        """Slurm works by these lines of slurm.conf, instead of those with the same keys; as before again afterwards."""
        before = Path(self.environment["SLURM_CONF"]).read_text()
        keys = tuple(f"{line.partition('=')[0]}=" for line in lines)
        kept = [line for line in before.splitlines() if not line.startswith(keys)]
        self._configure("\n".join([*kept, *lines, ""]))
        try:
            yield
        finally:
            self._configure(before)

    def _configure(self, text: str) -> None:
        configuration = Path(self.environment["SLURM_CONF"])
        aside = configuration.with_suffix(".new")
        aside.write_text(text)
        aside.rename(configuration)  # a job that starts reads this file, and dies of half of it
        self.ask("scontrol", "reconfigure")


@dataclass(frozen=True)
class StrictSite(Cluster):
    """A running development cluster with users, accounts, limits and rules; see slurm/devcluster/strict.lua."""

    def run_as(self, user: str, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node as `alice` or `bob`, in the checkout, with further variables set."""
        return subprocess.run(
            [DEVCLUSTER, "as", user, *map(str, command)], env=self.environment | variables, cwd=ROOT,
            capture_output=True, text=True, timeout=HANG_S, check=False,
        )  # fmt: skip

    def jobs(self, *arguments: str | Path, user: str = "alice", **variables: str) -> subprocess.CompletedProcess[str]:
        """`python -m jobs …` on the login node, as a user."""
        return self.run_as(user, sys.executable, "-m", "jobs", *arguments, **variables)

    def directory(self, user: str = "alice") -> Path:
        """A new directory of the user's, which nodes see."""
        path = Path(tempfile.mkdtemp(dir=Path(self.environment["DEVCLUSTER_SHARED"]) / user))
        shutil.chown(path, user=path.parent.stat().st_uid)
        path.chmod(0o755)
        return path

    @contextlib.contextmanager
    def limits(self, user: str = "alice", **limits: int) -> Iterator[None]:
        """Limit the user's associations (MaxSubmitJobs, MaxJobs, …); no limit again afterwards."""
        change = ["sacctmgr", "-i", "modify", "user", user, "set"]
        self.ask(*change, *(f"{key}={number}" for key, number in limits.items()))
        try:
            yield
        finally:
            self.ask(*change, *(f"{key}=-1" for key in limits))


def _free_port(port: int) -> int:
    """The first of a cluster's ports, none of which any program has: several checkouts may be tested at once."""
    for number in range(60):
        first = 18000 + (os.getpid() + number) % 60 * 80 + port
        with ExitStack() as sockets:
            clients = [sockets.enter_context(socket.socket()) for _ in range(16)]
            if all(client.connect_ex(("127.0.0.1", first + offset)) for offset, client in enumerate(clients)):
                return first
    pytest.fail("no ports are free for a cluster")


def _start(
    accounting: str, port: int, site: str = "open", more: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Cluster]:
    search = os.environ["PATH"] + ":/usr/sbin:/sbin"
    absent = [name for name in NEEDED if shutil.which(name, path=search) is None]
    if absent:
        reason = f"no Slurm here ({', '.join(absent)} missing): {DEVCLUSTER} install"
        if os.environ.get("CKPT_REQUIRE_ALL"):
            pytest.fail(reason)
        pytest.skip(reason)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
    environment |= more
    environment |= {
        "DEVCLUSTER_ROOT": f"/tmp/ckpt-test-{os.getpid()}-{port}",
        "DEVCLUSTER_SITE": site,
        "DEVCLUSTER_PORT": str(_free_port(port)),
        "DEVCLUSTER_ACCOUNTING": accounting,
        "DEVCLUSTER_OWNER": str(os.getpid()),
        "DEVCLUSTER_SLURMD_TIMEOUT_S": "5",
    }
    subprocess.run([DEVCLUSTER, "start"], env=environment, check=True, timeout=HANG_S)
    exports = subprocess.run([DEVCLUSTER, "env"], env=environment, check=True, capture_output=True, text=True).stdout
    for line in exports.splitlines():
        key, _, value = line.removeprefix("export ").partition("=")
        environment[key] = value
    try:
        yield (StrictSite if site == "strict" else Cluster)(environment)
    finally:
        subprocess.run([DEVCLUSTER, "clean"], env=environment, check=True, timeout=HANG_S)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four nodes with accounting."""
    yield from _start("yes", 0)


@pytest.fixture(scope="session")
def cluster_without_accounting() -> Iterator[Cluster]:
    """Four nodes where sacct says that there is no accounting."""
    yield from _start("no", 20)


@pytest.fixture(scope="session")
def strict_site() -> Iterator[Cluster]:
    """Four nodes as a strict site runs them: users, accounts, limits, rules, GPUs, memory that is counted."""
    if os.getuid() != 0:
        reason = "a site with users of its own needs root"
        if os.environ.get("CKPT_REQUIRE_ALL"):
            pytest.fail(reason)
        pytest.skip(reason)
    yield from _start("yes", 40, "strict")


@pytest.fixture(scope="session")
def cluster_on_gluster(mounts: Mounts) -> Iterator[Cluster]:
    """Two nodes that share a GlusterFS volume, each by a client of its own."""
    mounts.start("gluster")
    more = mounts.environment | {"DEVCLUSTER_SHARED_FS": "gluster", "DEVCLUSTER_NODES": "2"}
    yield from _start("no", 60, more=more)


@pytest.fixture(autouse=True)
def empty_queue(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails halfway leaves no job that holds up the next one's."""
    yield
    for name in CLUSTERS & request.node.funcargs.keys():
        cluster = request.node.funcargs[name]
        if left := cluster.ask("squeue", "--noheader", "--array", "--format=%A").split():
            cluster.ask("scancel", *left)


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[..., Path]:
    """Write a small study of the devcluster's site; keys of tables may be given over it."""
    return _study_writer(tmp_path)


@pytest.fixture
def home(strict_site: StrictSite) -> Path:
    """A new directory of alice's at the strict site: for her studies and her results."""
    return strict_site.directory()


@pytest.fixture
def write_site_study(home: Path) -> Callable[..., Path]:
    """As `write_study`, in alice's directory."""
    return _study_writer(home)


def _study_writer(directory: Path) -> Callable[..., Path]:

    def write(
        name: str, *, strategies: str = '["torch_save"]', repeats: int = 2, targets: str = "shared = {}",
        slurm: str = "", rounds: int = 1, vocabulary: int = 1000, warmups: int = 1, trials: str = "",
        endless: bool = False,
    ) -> Path:  # fmt: skip
        if endless:  # a job that something else ends; it mostly sleeps, so as to leave the machine to others
            strategies, repeats = '[{ name = "_selftest", sleep_s = 0.2 }]', 100_000
        model = directory / "config.json"
        model.write_text(json.dumps(TINY_MODEL | {"vocab_size": vocabulary}))
        path = directory / f"{name}.toml"
        path.write_text(
            f'name = "{name}"\nsite = "devcluster"\nstrategies = {strategies}\nrounds = {rounds}\n'
            f'[state]\nmodel = "{model}"\n[targets]\n{targets}\n'
            f"[trials]\nrepeats = {repeats}\nwarmups = {warmups}\n{trials}\n[slurm]\n{slurm}\n"
        )
        return path

    return write


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest modules first."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """When a test fails, say what the cluster saw: sinfo, squeue, sacct, the daemons' logs."""
    report = yield
    if report.when == "call" and report.failed:
        for name in CLUSTERS & item.funcargs.keys():
            environment = item.funcargs[name].environment
            seen = subprocess.run([DEVCLUSTER, "logs"], env=environment, capture_output=True, text=True, check=False)
            report.sections.append((f"{name}: devcluster logs", seen.stdout[-12000:] + seen.stderr[-2000:]))
    return report
