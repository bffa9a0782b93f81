"""What tests of every room share."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from support.filesystems import HERE, Filesystem, Mounts, chosen, mounts_of_this_run

# Machines are noisy and disks slow: how long an example takes says nothing about its behaviour.
settings.register_profile(
    "disk", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("disk")

WEIRD_NAMES = ["plain", "a space", "a 'quote' and \"two\"", "a\nnewline", "semi;colon & $HOME", "Ünïcode ✓"]


@pytest.fixture(params=WEIRD_NAMES)
def weird_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory whose name shells, TOML and HDF5 might trip over."""
    path = tmp_path / request.param
    path.mkdir()
    return path


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat a test that is marked `every_filesystem` on each real filesystem that can do what it is about."""
    marks = list(metafunc.definition.iter_markers("every_filesystem"))
    draws = getattr(metafunc.function, "is_hypothesis_test", False)  # of many states, that is: not of files
    if not marks or draws or "tmp_path" not in metafunc.fixturenames:
        return
    needed = [mark.kwargs["only"] for mark in marks if mark.kwargs]
    able = [each for each in chosen() if all(getattr(each, what) for what in needed)]
    metafunc.parametrize(
        "filesystem",
        [
            pytest.param(HERE, id=pytest.HIDDEN_PARAM),
            *(pytest.param(each, id=each.name, marks=pytest.mark.filesystems) for each in able),
        ],
        indirect=True,
        scope="function",
    )


@pytest.fixture(scope="session")
def mounts() -> Iterator[Mounts]:
    """Real filesystems, mounted for this test run: `mounts.start("gluster")` returns the directory."""
    with mounts_of_this_run() as found:
        yield found


@pytest.fixture
def second_client(mounts: Mounts, tmp_path: Path) -> Iterator[Path]:
    """Another client of the same GlusterFS volume, as another node would have."""
    mounts.start("gluster")
    directory = tmp_path / "second"
    directory.mkdir()
    address = mounts.environment["DEVCLUSTER_FILESYSTEMS_ADDRESS"]
    command = ["glusterfs", f"--volfile-server={address}", "--volfile-id=/gluster", f"--log-file={tmp_path / 'log'}"]
    subprocess.run([*command, directory], check=True, timeout=600)
    yield directory
    subprocess.run(["umount", directory], check=True, timeout=600)


@pytest.fixture
def filesystem(request: pytest.FixtureRequest) -> Filesystem:
    """What the filesystem of `tmp_path` can do; by default that of pytest's own temporary directory."""
    found: Filesystem = getattr(request, "param", HERE)
    return found


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, filesystem: Filesystem, tmp_path: Path) -> Iterator[Path]:
    """A new directory on that filesystem."""
    if filesystem is HERE:
        yield tmp_path
        return
    mounts: Mounts = request.getfixturevalue("mounts")
    path = Path(tempfile.mkdtemp(prefix=f"{tmp_path.name}-", dir=mounts.start(filesystem.name)))
    yield path
    shutil.rmtree(path)
