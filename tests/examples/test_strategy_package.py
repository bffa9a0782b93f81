"""Another package adds a strategy: it is installed, and nothing of this package changes."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from jobs import timing_log
from support.models import write_config

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "examples" / "strategy_package"


def build_wheel(directory: Path) -> Path:
    """Build the example's wheel as its build backend would, which may not be installed where there is no network."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    stem = f"{name.replace('-', '_')}-{version}"
    entry_points = [
        f"[{group}]\n" + "".join(f"{point} = {value}\n" for point, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    files = {
        "raw_file.py": (PACKAGE / "raw_file.py").read_text(),
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/entry_points.txt": "\n".join(entry_points),
    }
    record = f"{stem}.dist-info/RECORD"
    files[record] = "".join(f"{file},,\n" for file in [*files, record])
    path = directory / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
    return path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the package installed."""
    directory = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(directory / "site"), str(build_wheel(directory))], check=True)
    return {**os.environ, "PYTHONPATH": f"{directory / 'site'}{os.pathsep}{ROOT}", "COLUMNS": "200"}


def python(installed: dict[str, str], cwd: Path, *arguments: str | Path) -> str:
    """What `python ARGUMENTS` prints; it must end well."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=installed, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_study_with_it(installed: dict[str, str], tmp_path: Path) -> None:
    """Its strategy is listed with the others, and a study saves and loads with it, as with any other."""
    assert "buffer_kib" in python(installed, tmp_path, "-m", "ckpt", "strategies", "raw_file")
    (tmp_path / "target").mkdir()
    study = tmp_path / "third.toml"
    study.write_text(
        'name = "third"\nstrategies = [{ name = "raw_file", buffer_kib = 16 }]\n'
        f'[state]\nmodel = "{write_config(tmp_path / "config.json")}"\n'
        f'[targets.here]\npath = "{tmp_path / "target"}"\nallow_tmpfs = true\n'
        "[trials]\nrepeats = 1\nwarmups = 0\n"
    )

    python(installed, tmp_path, "-m", "jobs", "run", study, "--cluster", "local", "--results", tmp_path)

    [log] = [timing_log.read(path) for path in (tmp_path / "third" / "logs").glob("*.h5")]
    assert ("raw_file+buffer_kib=16", "complete") == (log.header.label, log.header.status)
    assert {("save", True), ("load", True)} == {(sample.operation, sample.valid) for sample in log.samples}


def test_its_own_tests(installed: dict[str, str], tmp_path: Path) -> None:
    """The contract of `ckpt.testing` holds for it, in a test module of a few lines."""
    test = tmp_path / "test_raw_file.py"
    test.write_text((PACKAGE / "test_raw_file.py").read_text())

    printed = python(installed, tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", test)

    assert " passed" in printed
