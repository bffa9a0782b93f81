"""The mistakes of a user of jobs; every message names what to do.

StudyError             the study file, or how it was called
├── TargetError        a place that can't be written to as it is
├── ResultsError       the results directory doesn't take a job's log, or give it back
└── SubmissionError    the cluster would not take the jobs
    └── NoAnswerError  it did not answer, and may have taken them
TimingLogError         a file that is no readable timing log
"""


class StudyError(Exception):
    """A study that can't be planned or run as it is."""


class TargetError(StudyError):
    """A target that does not exist, has no room, or is no disk.

    Attributes:
        what: what is wrong.
        remedy: what to do about it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}: {remedy}")
        self.what, self.remedy = what, remedy


class ResultsError(StudyError):
    """A job's log that can't be written or read because the filesystem of the results directory fails."""


class SubmissionError(StudyError):
    """The jobs could not be handed to the cluster."""


class NoAnswerError(SubmissionError):
    """The cluster did not answer, so it may have taken the jobs all the same."""


class TimingLogError(Exception):
    """A file that is no timing log, or one of a version that is not known here."""
