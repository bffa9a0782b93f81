"""A study's table `[slurm]`: what a job asks of the cluster, and how one such table lies over another."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ckpt.workload.spec import Count
from jobs.plan.table import Table, merged


def _at_least_one(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if not numbers or min(numbers) < 1:
        raise ValueError(f"{list(numbers)} must be one number or several, all greater than or equal to 1")
    return numbers


Axis = Annotated[
    tuple[Count, ...],
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else [value]),
    AfterValidator(_at_least_one),
]
"""Numbers that a study tries one after the other; a file may also give one alone."""


class Slurm(Table):
    """What a job asks of the cluster, in submitit's own names; None leaves Slurm's default.

    Attributes:
        setup: shell lines before the job; those that begin with `#` (`#BB`, `#DW`) stand right below `#SBATCH`.
        additional_parameters: any other option of sbatch, by its long name.
        without: keys, of this table or of `additional_parameters`, that the site's profile or the study's `[slurm]`
            gives and that are left out here.
        array_parallelism: jobs at a time; None lets the plan decide what doesn't disturb.
        nodes, tasks_per_node: the scale, one rank per task; a list is an axis of the study.
        signal_delay_s: how long before the time limit a job is told to mark its log and to clean up. None: 120 s, but
            at most a quarter of `timeout_min`.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: Axis | None = None
    tasks_per_node: Axis | None = None
    cpus_per_task: Count | None = Field(default=None, ge=1)
    gpus_per_node: Count | None = Field(default=None, ge=0)
    mem_gb: float | None = Field(default=None, gt=0)
    timeout_min: Count | None = Field(default=None, ge=1)
    exclusive: bool | str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    gres: str | None = None
    dependency: str | None = None
    comment: str | None = None
    wckey: str | None = None
    mail_type: str | None = None
    mail_user: str | None = None
    setup: tuple[str, ...] | None = None
    srun_args: tuple[str, ...] | None = None
    additional_parameters: dict[str, str | int | bool] | None = None
    without: tuple[str, ...] | None = None
    signal_delay_s: Count | None = Field(default=None, ge=1)
    array_parallelism: Count | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, table: Any) -> Any:
        """Drop what a profile gave; the file's own keys are already merged into it."""
        if isinstance(table, dict) and isinstance(table.get("without"), list | tuple):
            return _without(table, table["without"])
        return table

    @model_validator(mode="after")
    def _time_before_the_signal(self) -> Self:
        if self.signal_delay_s and self.timeout_min and self.signal_delay_s >= 60 * self.timeout_min:
            raise ValueError(
                f"signal_delay_s = {self.signal_delay_s} leaves jobs no time of timeout_min = {self.timeout_min}: "
                "leave it out, or allow more minutes"
            )
        return self

    def over(self, below: Slurm) -> Slurm:
        """This table with what it leaves open taken from another; what it is `without` stays out."""
        above, under = self.model_dump(exclude_none=True), below.model_dump(exclude_none=True)
        left_out = {*above.pop("without", ()), *under.pop("without", ())}
        both = merged(_without(under, self.without or ()), above)
        both["without"] = sorted(left_out - above.keys() - above.get("additional_parameters", {}).keys()) or None
        return Slurm.model_validate(both)


def _without(table: dict[str, Any], left_out: Collection[str]) -> dict[str, Any]:
    """A table without those keys, and without those of its `additional_parameters`."""
    kept = {key: value for key, value in table.items() if key not in left_out}
    others = kept.get("additional_parameters")
    if isinstance(others, dict):
        kept["additional_parameters"] = {key: value for key, value in others.items() if key not in left_out}
    return kept
