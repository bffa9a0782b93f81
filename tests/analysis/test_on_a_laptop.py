"""`python -m analysis` on a laptop, which has neither torch nor Slurm: nothing but the `analysis` extra."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import analysis
from support.studies import StudyOnDisk

REPOSITORY = Path(analysis.__file__).parents[1]

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"PYTHONPATH": str(REPOSITORY)}

# Runs `python -m analysis ARGUMENTS`, several times, where some modules can't be imported.
WITHOUT = """
import contextlib, io, json, runpy, sys
blocked, commands = set(json.loads(sys.argv[1])), json.loads(sys.argv[2])

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

blocked -= sys.modules.keys()  # what the interpreter itself brought from site-packages
sys.meta_path.insert(0, Blocker())
try:
    import torch
    raise SystemExit("torch is not blocked")
except ModuleNotFoundError:
    pass
import analysis
printed = []
for arguments in commands:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        if arguments[0] == "load":
            print(len(analysis.load_results(arguments[1]).samples))
        else:
            sys.argv = ["analysis", *arguments]
            try:
                runpy.run_module("analysis", run_name="__main__", alter_sys=True)
            except SystemExit as ended:
                if ended.code:
                    raise
    printed.append(output.getvalue())
print(json.dumps(printed))
"""


def run_without(blocked: set[str], *commands: Sequence[str | Path]) -> list[str]:
    """What `python -m analysis` prints with each of these arguments where these modules are not installed."""
    arguments = [[str(argument) for argument in command] for command in commands]
    command = [sys.executable, "-c", WITHOUT, json.dumps(sorted(blocked)), json.dumps(arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT | {"COLUMNS": "1000"})
    assert (ended.returncode, ended.stderr) == (0, "")
    printed: list[str] = json.loads(ended.stdout)
    return printed


def distributions(requirements: list[str]) -> Iterator[str]:
    """The canonical names of these requirements and of all that they require, for what is installed here."""
    waiting, seen = [(Requirement(text), "") for text in requirements], set()
    while waiting:
        requirement, extra = waiting.pop()
        name = requirement.name.lower().replace("_", "-")
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(text), wanted) for text in metadata.requires(name) or ()]
        yield name


def absent_from_the_analysis_extra() -> set[str]:
    """The top-level modules that are installed here, and not by `pip install .[analysis]`."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["analysis"]
    brought = set(distributions(wanted))
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if not brought & {owner.lower().replace("_", "-") for owner in owners}
        and module not in sys.stdlib_module_names
        and not (REPOSITORY / module).exists()
    }


@pytest.mark.parametrize("extra", ["no torch, no Slurm", "nothing but the extra"])
def test_analysis_runs_on_a_laptop(extra: str, three_methods: StudyOnDisk, tmp_path: Path) -> None:
    """Frames, tables and merge need no module of the cluster's, nor any that `.[analysis]` does not install."""
    blocked = {"torch", "transformers", "tensorstore", "submitit", "psutil"}
    if extra == "nothing but the extra":
        others = absent_from_the_analysis_extra()
        assert blocked | {"pytest", "hypothesis"} <= others
        assert not others & {"numpy", "pandas", "h5py", "rich", "cyclopts", "pydantic", "tabulate", "jinja2"}
        blocked = others
    merged = tmp_path / "merged.h5"

    samples, table, merging, of_merged, comparison, latex = run_without(
        blocked,
        ["load", three_methods.root],
        ["table", three_methods.root],
        ["merge", three_methods.root, "--output", merged],
        ["table", merged],
        ["compare", three_methods.root, merged],
        ["table", merged, "--format", "latex"],
    )

    assert samples == "78\n"
    assert "+2090.0 %" in table
    assert merging == f"{merged}: 3 logs\n"
    assert of_merged == table
    assert "not significant" in comparison
    assert r"\begin{table}" in latex


def test_the_report_and_its_parts_run_on_a_laptop(three_methods: StudyOnDisk, tmp_path: Path) -> None:
    """Report, figures, advice and projection come from the logs alone, with nothing but the `analysis` extra."""
    blocked = absent_from_the_analysis_extra()
    root = three_methods.root

    advice, projection, report, figures = run_without(
        blocked,
        ["advise", root],
        ["project", root, "--parameters=1e9", "--nodes=2"],
        ["report", root],
        ["figures", root, "-o", tmp_path / "figures"],
    )

    assert "use torch_save." in advice
    assert "Projected to 1e+09 parameters" in projection
    assert report == f"{root}/report/report.html\n"
    assert "10 figures, each as svg, pdf, png" in figures
    assert len(list((tmp_path / "figures").iterdir())) == 30
    assert (root / "report" / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_importing_analysis_imports_no_figures() -> None:
    """A notebook that only reads logs waits for neither matplotlib nor torch."""
    script = (
        "import analysis, sys; print(sorted({'matplotlib', 'torch', 'submitit', 'tensorstore'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=ENVIRONMENT)

    assert ended.stdout == "[]\n"
