"""DCP's asynchronous save, `async_save`: with a thread of this process, or with a process of DCP's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt.background.async_saver import AsyncSaver, computed
from ckpt.errors import CheckpointError, wrapped
from ckpt.formats import dcp_errors
from ckpt.process_group.group import ProcessGroup
from ckpt.state.sharding import RankShards

if TYPE_CHECKING:
    from ckpt.state.layout import State

_ENDS_WITHIN_S = 30


@dataclass(frozen=True, slots=True)
class DcpCall:
    """What one rank gives to DCP's `save` or `async_save`.

    Attributes:
        tensors: by DCP's names.
        writer: DCP's storage writer.
        planner: None for DCP's own.
        files: takes the metadata that the call returns; finishes the checkpoint, and returns this rank's files.
        is_alone: whether no other rank takes part.
    """

    tensors: State
    writer: Any
    planner: Any
    files: Callable[[Any], list[Path]]
    is_alone: bool


class TorchDcpSaver(AsyncSaver):
    """Copies the state into memory that is used again for the next save, and lets DCP write it.

    Plans are cached where one process saves. Several ranks meet in torch.distributed's default process group, which
    nothing else may use meanwhile.

    Args:
        call_of: what to give to DCP; takes what `start` takes.
        label: of the strategy.
        in_process: use DCP's process, of which a program has one. It needs a process group even if there is one rank.
    """

    def __init__(
        self, call_of: Callable[[State, Path, RankShards, ProcessGroup], DcpCall], label: str, *, in_process: bool
    ) -> None:
        try:
            from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
        except ImportError as error:
            raise CheckpointError(f"DCP's asynchronous save needs PyTorch 2.9 or newer: {error}") from error
        # DCP warns of a single process in a thread of its own, where no context manager can keep it quiet.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        self._call_of, self._label, self._in_process = call_of, label, in_process
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=False,
                use_shared_memory=in_process,
                use_async_staging=False,
                use_non_blocking_copy=False,
            )
        )
        self._running: tuple[Path, DcpCall, Future[Any]] | None = None
        self._owns_group = False

    def start(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> None:
        """Copy the state, and let DCP start; the first save starts its process."""
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save

        call = self._call_of(computed(state), directory, shards, group)
        if self._in_process:
            self._prepare_process(group)
        kind = AsyncCheckpointerType.PROCESS if self._in_process else AsyncCheckpointerType.THREAD
        with wrapped(f"can't save to {directory}"), dcp_errors.converted(f"can't save to {directory}"), _address(group):
            future: Any = async_save(
                call.tensors,
                storage_writer=call.writer,
                planner=call.planner or self._planner(),
                async_checkpointer_type=kind,
                async_stager=self._stager,
                no_dist=call.is_alone and not self._in_process,
            )
        self._running = directory, call, future

    def finish(self) -> list[Path]:
        """Wait for DCP, and make sure that none of its threads lost an error."""
        assert self._running is not None  # the caller has started a save
        directory, call, future = self._running
        self._running = None
        try:
            with wrapped(f"can't save to {directory}"), dcp_errors.converted(f"can't save to {directory}"):
                return call.files(future.result())
        except CheckpointError:
            if self._in_process:  # which may be dying: the next save starts another one
                _end_process(0)
            raise

    @property
    def helpers(self) -> list[int]:
        """DCP's process, if it has started one."""
        process = _process()
        return [process.pid] if self._in_process and process is not None and process.is_alive() else []

    def close(self) -> None:
        """Wait for the save that is running; then end DCP's process."""
        if self._running is not None:
            with suppress(CheckpointError):
                self.finish()
        self._stager.close()
        if self._in_process:
            _end_process()
        if self._owns_group:
            import torch.distributed as dist

            self._owns_group = False
            dist.destroy_process_group()

    def _planner(self) -> Any:
        """DCP's planner, which keeps plans; under the strategy's name, since a plan holds what its writer added."""
        from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

        planner = DefaultSavePlanner(enable_plan_caching=True)
        planner._cached_plans_key = self._label  # noqa: SLF001  # DCP has one cache for all writers
        return planner

    def _prepare_process(self, group: ProcessGroup) -> None:
        """Make the process group that DCP asks for its process, and give up a process that has died."""
        import torch.distributed as dist

        process = _process()
        if process is not None and not process.is_alive():
            _end_process()
        if group.size == 1 and not dist.is_initialized():
            store = dist.HashStore()  # type: ignore[attr-defined]  # it is documented all the same
            dist.init_process_group("gloo", store=store, rank=0, world_size=1)
            self._owns_group = True
        ranks = dist.get_world_size() if dist.is_initialized() else 0
        if ranks != group.size:
            raise CheckpointError(
                f"DCP's process works for torch.distributed's default process group, of {ranks} ranks here, and "
                f"{group.size} save: take library-thread"
            )


def _process() -> Any:
    """The process that DCP started; None if it hasn't."""
    from torch.distributed.checkpoint import _async_process_executor

    started = _async_process_executor._CHECKPOINT_PROCESS  # noqa: SLF001  # DCP has no other way to ask or to end it
    return started._save_process if started is not None else None  # noqa: SLF001


def _end_process(patience_s: float = _ENDS_WITHIN_S) -> None:
    """End DCP's process, by force after so many seconds; the next save starts another one."""
    from torch.distributed.checkpoint import _async_process_executor

    process = _process()
    _async_process_executor._CHECKPOINT_PROCESS = None  # noqa: SLF001  # as above; DCP asks it to end when it is deleted
    if process is not None:
        process.join(patience_s)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def _address(group: ProcessGroup) -> Iterator[None]:
    """Where a single rank's process meets itself: this host's name, DCP's choice, need not have an address.

    DCP asks for the name in this thread. MASTER_ADDR would do as well, but a process that another thread starts while
    the environment changes doesn't start: exit code 255.
    """
    if group.size > 1:
        yield
        return
    from torch.distributed.checkpoint import _async_process_executor

    executor: Any = _async_process_executor  # DCP has no argument for it
    name_of_host, executor._get_fq_hostname = executor._get_fq_hostname, lambda: "127.0.0.1"  # noqa: SLF001
    try:
        yield
    finally:
        executor._get_fq_hostname = name_of_host  # noqa: SLF001
