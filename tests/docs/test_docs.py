"""The documentation: its links lead somewhere, its commands and code run, and its generated parts are current."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

import ckpt
from jobs.plan import plan, study_file
from support.logs import LogBuilder, job

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    ROOT / "slurm" / "devcluster" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
SHIPPED = [*sorted((ROOT / "jobs" / "studies").glob("*.toml")), *sorted((ROOT / "slurm" / "sites").glob("*.toml"))]
FROZEN = sorted((ROOT / "docs" / "results").glob("*.toml"))


def by_path(path: Path) -> str:
    """A page by its path, in the names of tests."""
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in that language; "" for those without one."""
    every = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in every if name == language]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=by_path)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    """A link leads to a file of the repository, and to a heading of it if it names one."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert [] == dead


def test_readme_leads_to_every_guide() -> None:
    """A stranger finds every guide from the README."""
    text = (ROOT / "README.md").read_text()
    assert [] == [path.name for path in (ROOT / "docs/guide").glob("*.md") if f"docs/guide/{path.name}" not in text]


def test_readme_fits_on_a_few_screens() -> None:
    """The README has at most 130 lines: it is a landing page, and the rest is in docs/."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_prose_has_at_most_120_columns() -> None:
    """Lines fit a reviewer's screen, except rows of tables and what is generated; in shipped studies and sites too."""
    long = []
    for page in [*PAGES, *SHIPPED]:
        written = re.sub(r"<!-- generated.*?<!-- end -->", "", page.read_text(), flags=re.DOTALL)
        long += [f"{by_path(page)}: {line}" for line in written.splitlines() if len(line) > 120 and line[0] != "|"]
    assert [] == long


@pytest.mark.parametrize("page", PAGES, ids=by_path)
def test_commands_exist_with_their_options(page: Path) -> None:
    """Each command of a code block has a name, arguments and options that the command line accepts."""
    lines = "\n".join(blocks(page, "")).replace("\\\n", " ").splitlines()
    for line in lines:
        command = re.match(r"(?:\w+=\S+ )*(?:python -m|ckpt-study) (jobs|ckpt|analysis) ([^#>]*)", line)
        if command:
            app = importlib.import_module(f"{command[1]}.__main__").app
            app.parse_args(shlex.split(command[2]), exit_on_error=False, print_error=False)


@pytest.mark.parametrize("page", PAGES, ids=by_path)
def test_make_targets_exist(page: Path) -> None:
    """Each `make` command that a page names is in the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", page.read_text(), re.MULTILINE)
    assert {first or second for first, second in named} <= targets


@pytest.mark.parametrize("page", PAGES, ids=by_path)
def test_studies_can_be_planned(page: Path, tmp_path: Path) -> None:
    """Each study in a code block is valid, and has jobs."""
    studies = [text for text in blocks(page, "toml") if "strategies = [" in text]
    for number, text in enumerate(studies):
        path = tmp_path / f"{number}.toml"
        path.write_text(text)
        assert plan.make_plan(study_file.read(path)).jobs


@pytest.mark.parametrize("path", FROZEN, ids=by_path)
def test_frozen_studies_can_be_planned(path: Path) -> None:
    """The study files of published results stay valid."""
    assert plan.make_plan(study_file.read(path)).jobs


def test_frozen_studies_have_the_published_jobs() -> None:
    """The frozen studies have as many jobs as the results' pages report."""
    published = {"2026-11-one-disk.toml": 48, "2026-11-ranks.toml": 54, "original-comparison.toml": 3}
    planned = {path.name: len(plan.make_plan(study_file.read(path)).jobs) for path in FROZEN if path.name in published}
    assert published == planned


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # DCP's, in a single process
@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md", "docs/guide/library.md", "docs/guide/dcp.md"])
def test_library_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of a page run one after the other, as a reader types them."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    code = blocks(ROOT / page, "python")
    assert code
    for block in code:
        exec(compile(block, page, "exec", dont_inherit=True), names)  # what is tested


def test_analysis_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python block of the guide to comparing runs, and prints the median of a study's saves."""
    monkeypatch.chdir(tmp_path)
    LogBuilder(job("torch_save")).trial(save=1.25).write(tmp_path / "results" / "my-study" / "logs" / "a.h5")
    (block,) = blocks(ROOT / "docs/guide/comparing.md", "python")
    exec(compile(block, "comparing.md", "exec", dont_inherit=True), {})
    assert "torch_save    1.25" in capsys.readouterr().out


def test_generated_parts_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generated parts of the documentation are what the code gives today; if not: `make docs-reference`."""
    monkeypatch.syspath_prepend(ROOT / "docs")  # as where `python docs/generate.py` starts
    pages = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()
    assert len(pages) == 7
    stale = [by_path(path) for path, text in pages.items() if path.read_text() != text]
    assert [] == stale, "run make docs-reference and commit the pages"


def test_manifest_has_the_documented_keys(tmp_path: Path) -> None:
    """The reference lists the keys that `checkpoint.json` has, and no others."""
    ckpt.save({"weight": torch.zeros(2)}, tmp_path / "checkpoint")
    section = (ROOT / "docs/reference/checkpoint-format.md").read_text().split("## `checkpoint.json`")[1]
    table = section.split("\n\n")[2]
    manifest = json.loads((tmp_path / "checkpoint" / "checkpoint.json").read_text())
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == manifest.keys()


def test_citation_names_this_release() -> None:
    """CITATION.cff is valid YAML with the required keys, and has the version of the package."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == citation["version"]
