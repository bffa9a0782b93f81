"""Site profiles: every line says where it is from, and what sbatch gets for each site and target."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from pytest_regressions.file_regression import FileRegressionFixture

from jobs.cluster import submit
from jobs.cluster.arrays import batches
from jobs.errors import StudyError
from jobs.paths import StudyPaths
from jobs.plan import plan, study_file
from jobs.plan.slurm_table import Slurm
from jobs.plan.study import Study

SITES = study_file.sites()
TARGETS = {site: list(tomllib.loads(file.read_text("utf-8"))["targets"]) for site, file in SITES.items()}
CELLS = [
    pytest.param(site, target, id=f"{site}-{target}")
    for site in SITES
    for target in TARGETS[site]
    if site != "filesystems" or target == "xfs"  # its targets differ in their paths only
]

# These are made by this repository: their profiles have no documentation elsewhere to cite.
FOREIGN = [site for site in SITES if site not in {"devcluster", "filesystems"}]
ASSUMPTION = "assumption: not verified on the machine"
SOURCE = re.compile(r"#   \[(\w+)] .* https://\S+")
CITATION = re.compile(r"\[(\w+)(?:, [^]]+)?]")


def write(tmp_path: Path, targets: str, slurm: str = "", site: str | None = None) -> Path:
    """A study of two strategies, so that an array goes out."""
    path = tmp_path / "demo.toml"
    path.write_text(
        'name = "demo"\nstrategies = ["torch_save", "tensorstore_t5x"]\n'
        + (f'site = "{site}"\n' if site else "")
        + f'[state]\nmodel = "openllama-3b"\n[targets]\n{targets}\n[slurm]\n{slurm}\n'
    )
    return path


def script(of: Study) -> str:
    """The script of a study's only array, the same wherever Python is installed."""
    planned = plan.make_plan(of)
    (batch,) = batches(of, planned.jobs)
    text = submit.script(StudyPaths(Path("/results/demo")), planned, batch)
    return text.replace(shlex.quote(sys.executable), "PYTHON")


def comment(lines: list[str]) -> str:
    """What a block of comment lines says, as one line."""
    return " ".join(" ".join(line.lstrip("#") for line in lines).split())


@pytest.mark.parametrize("site", SITES)
def test_every_target_of_a_site_can_be_named(site: str, tmp_path: Path) -> None:
    """A study that names the site and its targets, and nothing else, can be planned."""
    read = study_file.read(write(tmp_path, "\n".join(f"{name} = {{}}" for name in TARGETS[site]), site=site))

    jobs = plan.make_plan(read).jobs
    assert set(TARGETS[site]) == {job.target for job in jobs}
    assert 2 * len(TARGETS[site]) == len(jobs)


@pytest.mark.parametrize("site", FOREIGN)
def test_every_line_of_a_profile_says_where_it_is_from(site: str) -> None:
    """On the line, or in the comment right above it: a source from the list at the top, or that it is assumed."""
    lines = SITES[site].read_text("utf-8").splitlines()
    sources = {found[1] for line in lines if (found := SOURCE.fullmatch(line))}
    above: list[str] = []
    unexplained = []
    for line in lines:
        if line.startswith("#"):
            above.append(line)
            continue
        said = comment([*above, line.partition(" # ")[2]])
        if line and not sources & set(CITATION.findall(said)) and ASSUMPTION not in said:
            unexplained.append(line)
        above = []

    assert unexplained == []


@pytest.mark.parametrize("site", FOREIGN)
def test_a_profile_lists_the_sources_that_it_cites(site: str) -> None:
    """Nothing is cited that isn't in the list, and nothing is in the list that isn't cited."""
    lines = SITES[site].read_text("utf-8").splitlines()

    listed = [found[1] for line in lines if (found := SOURCE.fullmatch(line))]
    said = comment([line[line.index("#") :] for line in lines if "#" in line and not SOURCE.fullmatch(line)])
    assert sorted(set(CITATION.findall(said)) - {"slurm"}) == sorted(listed)


@pytest.mark.parametrize("site", SITES)
def test_a_profile_charges_nobody(site: str) -> None:
    """The account is the user's: no profile has one, neither for all jobs nor for those of a target."""
    profile = tomllib.loads(SITES[site].read_text("utf-8"))

    asked = [profile["slurm"], *(target.get("slurm", {}) for target in profile["targets"].values())]
    assert [table for table in asked if "account" in table] == []


@pytest.mark.parametrize(("site", "target"), CELLS)
def test_script_of(site: str, target: str, tmp_path: Path, file_regression: FileRegressionFixture) -> None:
    """What sbatch gets for a study of that site and target."""
    read = study_file.read(write(tmp_path, f"{target} = {{}}", site=site))

    file_regression.check(script(read), encoding="utf-8", extension=".sbatch")


def test_script_with_every_key(tmp_path: Path, file_regression: FileRegressionFixture) -> None:
    """Every key that [slurm] takes is in the script; one that is new has to be put here."""
    asked = """
        partition = "large"
        account = "m1234"
        qos = "premium"
        constraint = "cpu&nvme"
        nodes = 1
        tasks_per_node = 1
        cpus_per_task = 16
        gpus_per_node = 4
        mem_gb = 12.5
        timeout_min = 90
        exclusive = "user"
        exclude = "node[1-3],node7"
        nodelist = "node[10-20]"
        gres = "lustre:1"
        dependency = "afterok:17"
        comment = "what does a checkpoint cost?"
        wckey = "storage"
        mail_type = "END,FAIL"
        mail_user = "someone@example.org"
        setup = ["module load python/3.11", 'export NOTE="two words"']
        srun_args = ["--cpu-bind=none", "--export=ALL,NOTE=two words"]
        additional_parameters = { reservation = "io week", nice = 100, requeue = true }
        without = ["licenses"]
        signal_delay_s = 300
        array_parallelism = 1
    """
    read = study_file.read(write(tmp_path, 'lustre = { path = "$SCRATCH", filesystem = "lustre" }', asked))

    assert set(Slurm.model_fields) == read.slurm.model_fields_set
    file_regression.check(script(read), encoding="utf-8", extension=".sbatch")


DIRECTIVES = [
    "#BB create_persistent name=checkpoints capacity=100GB access=striped type=scratch",
    "#DW jobdw type=scratch access_mode=striped capacity=100GiB",
    "#DW stage_out type=directory source=$DW_JOB_STRIPED/kept destination=/project/kept",
]


def of_a_burst_buffer(tmp_path: Path, setup: list[str]) -> Study:
    """A study that brings its burst buffer along."""
    slurm = f'setup = {setup}\nadditional_parameters = {{ bbf = "/home/me/burst buffer.conf", switches = "1@10" }}'
    return study_file.read(write(tmp_path, 'burst = { path = "$DW_JOB_STRIPED" }', slurm))


def test_script_with_a_burst_buffer(tmp_path: Path, file_regression: FileRegressionFixture) -> None:
    """#BB and #DW stand right below the #SBATCH lines, before any command, where Slurm stops looking for them."""
    text = script(of_a_burst_buffer(tmp_path, [*DIRECTIVES, "module load datawarp"]))

    head = text[: text.index("module load datawarp")].splitlines()
    assert [line for line in head if line and not line.startswith("#")] == []
    assert head[-len(DIRECTIVES) :] == DIRECTIVES
    assert head[-len(DIRECTIVES) - 3].startswith("#SBATCH ")
    file_regression.check(text, encoding="utf-8", extension=".sbatch")


def test_a_burst_buffer_named_after_a_command(tmp_path: Path) -> None:
    """#BB and #DW come before the commands of `setup`, wherever they stand in it; each kind keeps its order."""
    text = script(of_a_burst_buffer(tmp_path, ["module load datawarp", *DIRECTIVES, "export A=1"]))

    below = text[text.rindex("#SBATCH ") :].splitlines()
    assert [*DIRECTIVES, "module load datawarp", "export A=1"] == below[3:8]


def test_the_study_goes_before_its_site(tmp_path: Path) -> None:
    """What a study says counts, and what it leaves open comes from the profile: for all jobs, and for a target."""
    targets = 'lustre = { path = "/lustre/orion/abc123/proj-shared" }'
    read = study_file.read(write(tmp_path, targets, 'account = "ABC123"\ntimeout_min = 110', site="frontier"))

    assert (
        read.slurm.account, read.slurm.timeout_min, read.slurm.partition, read.slurm.exclusive,
    ) == ("ABC123", 110, "batch", True)  # fmt: skip
    assert {"lustre"} == read.targets.keys()
    assert read.targets["lustre"].path == "/lustre/orion/abc123/proj-shared"
    assert read.targets["lustre"].filesystem == "lustre"


def test_a_request_for_a_target_keeps_what_the_site_needs_there(tmp_path: Path) -> None:
    """More time for Frontier's NVMe doesn't take away the constraint without which there is none."""
    read = study_file.read(write(tmp_path, "nvme = { slurm = { timeout_min = 100 } }", site="frontier"))

    text = script(read)
    assert "#SBATCH --time=100\n" in text
    assert "#SBATCH --constraint=nvme\n" in text


@pytest.mark.parametrize(
    ("targets", "slurm", "key"),
    [
        ("lustre = {}", "time_min = 5", "slurm.time_min"),
        ("lustre = { slurm = { time_min = 5 } }", "", "targets.lustre.slurm.time_min"),
    ],
    ids=["for all jobs", "for a target"],
)
def test_an_unknown_key_is_told_with_the_valid_ones(targets: str, slurm: str, key: str, tmp_path: Path) -> None:
    """A misspelt request is refused before anything is submitted, with its name and every key that there is."""
    path = write(tmp_path, targets, slurm, site="perlmutter")

    with pytest.raises(StudyError) as caught:
        study_file.read(path)

    assert f"{path}: there is no key {key!r}. Valid keys" in str(caught.value)
    listed = str(caught.value).rpartition(": ")[2].split(", ")
    assert list(Slurm.model_fields) == listed


def test_an_unknown_site_is_told_with_the_known_ones(tmp_path: Path) -> None:
    """The message names the file, what stands there, and every site that has a profile."""
    path = write(tmp_path, "lustre = {}", site="perlmuter")

    with pytest.raises(StudyError) as caught:
        study_file.read(path)

    assert str(caught.value).startswith(f"{path}: site = 'perlmuter' is unknown")
    assert {"alliance", "devcluster", "filesystems", "frontier", "generic-lustre", "perlmutter"} == SITES.keys()
    assert [site for site in SITES if site not in str(caught.value)] == []
