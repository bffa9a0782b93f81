"""How jobs are handed to Slurm, by a stand-in for its commands: controllers that fall silent, sites without arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from jobs.cluster import submit
from jobs.cluster.one_job import OneJobSender
from jobs.cluster.submit import Sender
from jobs.errors import NoAnswerError, SubmissionError
from jobs.paths import StudyPaths
from jobs.plan import plan
from support.commands import Commands

Send = Callable[..., Sender]

TAKES = 'echo "Submitted batch job $$"'
SILENT = "echo 'sbatch: error: Batch job submission failed: Unable to contact slurm controller' >&2; exit 1"
FULL = "echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2; exit 1"
REFUSES = "echo 'sbatch: error: invalid partition specified: nosuch' >&2; exit 1"
ON_TEST = 'case "$1" in --test-only) exit ;; esac\n'
"""What follows is about submissions, and not about tests of them."""


@pytest.fixture
def sender(tiny: dict[str, Any], planned: Callable[[Mapping[str, Any]], StudyPaths], commands: Commands) -> Send:
    """Make a sender of a study of so many jobs. Slurm takes all of them, in arrays."""
    for name, body in {"scontrol": "echo MaxArraySize=1001", "srun": "", "sbatch": TAKES}.items():
        commands.add(name, body)

    def make(jobs: int, kind: type[Sender] = Sender) -> Sender:
        paths = planned(tiny | {"rounds": jobs})
        of_study = plan.from_json(paths.plan_json.read_text(), "plan.json")
        return kind(paths, of_study, of_study.jobs)

    return make


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Set how long to wait, in s, after jobs have ended, and otherwise."""

    def wait(room_s: float, retry_s: float) -> None:
        monkeypatch.setattr(submit, "_ROOM_S", room_s)
        monkeypatch.setattr(submit, "_RETRY_S", retry_s)

    return wait


def test_a_controller_that_falls_silent_is_asked_again(
    sender: Send, commands: Commands, waits: Callable[[float, float], None]
) -> None:
    """While `run` follows jobs, what is left stays so, whatever ends meanwhile, until Slurm answers."""
    sending = sender(2)
    commands.add("sbatch", SILENT)
    waits(0, 0)
    assert not sending.has_ended(on_their_way=1)
    waits(0, 1e9)
    assert not sending.has_ended(on_their_way=0)  # one has ended, but Slurm has just been silent
    assert (len(commands.calls("sbatch")), len(sending.left)) == (1, 2)

    commands.add("sbatch", TAKES)
    waits(0, 0)
    assert [sending.has_ended(on_their_way=0) for _ in range(3)] == [False, False, True]
    assert (sending.sent, sending.left) == (2, [])
    assert "squeue" not in " ".join(commands.calls())  # nothing had been submitted, so there is nothing to end


def test_jobs_that_a_silent_controller_may_have_queued_end_before_they_are_sent_again(
    sender: Send, commands: Commands, waits: Callable[[float, float], None]
) -> None:
    """As long as Slurm doesn't say whether it has them, nothing goes out."""
    sending = sender(1)
    queue = commands.directory / "queue"
    late = f"echo \"7|$1\" >{queue}; echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1"
    commands.add("sbatch", ON_TEST + late)
    commands.add("squeue", "exit 1")
    commands.add("scancel", "")
    waits(0, 0)
    for _ in range(2):
        assert not sending.has_ended(0)
    assert len(sending.left) == 1
    commands.add("sbatch", TAKES)
    commands.add("squeue", f'while read -r line; do echo "$line"; done <{queue}')
    assert [sending.has_ended(0), sending.has_ended(0)] == [False, True]

    names = [call.split()[0] for call in commands.calls()[1:]]
    assert names == ["sbatch", "sbatch", "squeue", "squeue", "scancel", "sbatch", "sbatch"]
    assert commands.calls("scancel") == ["scancel 7"]


@pytest.mark.parametrize("kind", [Sender, OneJobSender])
def test_what_a_refusal_advises(kind: type[Sender], sender: Send, commands: Commands) -> None:
    """A rule that is broken says what to correct; where Slurm doesn't answer, nothing in the study is wrong."""
    sending = sender(2, kind)
    commands.add("sbatch", SILENT)
    with pytest.raises(NoAnswerError, match="Unable to contact") as silent:
        sending.send()
    commands.add("sbatch", REFUSES)
    with pytest.raises(
        SubmissionError, match=r"invalid partition.*: nosuch\ncorrect the keys below \[slurm\]"
    ) as wrong:
        sending.send()

    assert str(silent.value).endswith("\ntype the same command again when Slurm answers")
    assert not isinstance(wrong.value, NoAnswerError)


@pytest.mark.parametrize("refused", [REFUSES, ON_TEST + REFUSES, REFUSES.replace("nosuch", "contact your PI")])
def test_what_slurm_does_not_want_ends_the_run(
    refused: str, sender: Send, commands: Commands, waits: Callable[[float, float], None]
) -> None:
    """In the midst of it too, by sbatch's test or by the submission; nothing is asked again for ever."""
    sending = sender(1)
    commands.add("sbatch", refused)
    waits(0, 0)
    with pytest.raises(SubmissionError, match=r"(?s)Slurm did not take the job: .*correct the keys below"):
        sending.has_ended(0)


NO_ARRAYS = (
    'for file; do :; done\nwhile read -r line; do case "$line" in *--array=*) '
    "echo 'sbatch: error: FAILED: job arrays are not available' >&2; exit 1 ;; esac; done <\"$file\"\n"
)


def test_without_arrays_the_first_job_is_the_test_for_all(sender: Send, commands: Commands) -> None:
    """Two tests, of the array and of one job, and then one request for each job."""
    sending = sender(4)
    commands.add("sbatch", NO_ARRAYS + TAKES)
    sending.send()

    tests = ["--test-only" in call for call in commands.calls("sbatch")]
    assert (sending.sent, tests) == (4, [True, True, False, False, False, False])


def test_a_limit_that_shows_when_a_job_is_submitted(sender: Send, commands: Commands) -> None:
    """As far as it allows, jobs are taken; the others are left until there is room, and their script isn't kept."""
    sending = sender(4)
    taken = commands.directory / "taken"
    twice = f'case "$1" in --test-only) exit ;; esac\nif [ -e {taken}-2 ]; then {FULL}; fi\n'
    commands.add("sbatch", f"{NO_ARRAYS}{twice}if [ -e {taken} ]; then : >{taken}-2; fi; : >{taken}\n{TAKES}")
    sending.send()

    assert (sending.sent, len(sending.left), sending.full) == (2, 2, True)
    assert "AssocMaxSubmitJobLimit" in sending.refusal
    assert [path for path in sending._paths.slurm.glob(".submission_file_*") if not path.is_symlink()] == []
