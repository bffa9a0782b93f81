"""PyTorch's distributed checkpoint (DCP): its file system writer, or, in one process, its safetensors writer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ckpt.disk import durable
from ckpt.errors import CheckpointError
from ckpt.formats import dcp_metadata
from ckpt.formats.safetensors_names import METADATA_KEY, Note, is_note, names_bytes, note_of, pack
from ckpt.formats.shard_files import select
from ckpt.process_group.group import ProcessGroup
from ckpt.state.dtypes import require_plain
from ckpt.state.layout import Layout, TensorLayout, layout_of_state
from ckpt.state.sharding import Partition, RankShards
from ckpt.strategy import Facts, Footprint, Strategy

if TYPE_CHECKING:
    from ckpt.state.layout import State

_METADATA = dcp_metadata.FILE
_INDEX = "model.safetensors.index.json"

_LOST_THREAD = "can't save to {}: a thread of DCP failed, and said why on stderr"

_DCP = "torch.distributed.checkpoint"


@dataclass(frozen=True)
class TorchDcp(Strategy):
    """`torch.distributed.checkpoint.save` and `load`.

    Several ranks plan and commit together, as DCP does it, over torch.distributed's default process group.

    Attributes:
        thread_count: of the threads that write; with one file per rank, each writes a file of its own.
        single_file_per_rank: False for a file per tensor.
        serialization: `torch_save` makes each tensor a `torch.save` archive; `safetensors` is DCP's Hugging Face
            writer, whose reader takes as many threads; it writes no index where several ranks save, and so is for one.
    """

    thread_count: Annotated[int, Field(ge=1)] = 1
    single_file_per_rank: bool = True
    serialization: Literal["torch_save", "safetensors"] = "torch_save"

    requires: ClassVar[tuple[str, ...]] = ("torch", f"{_DCP}.hf_storage", "safetensors.torch")

    uses_process_group: ClassVar[bool] = True

    @property
    def facts(self) -> Facts:
        """What it does."""
        archives = self.serialization == "torch_save"
        return Facts(
            files=f"{'1 per thread' if self.single_file_per_rank else '1 per tensor'}, 1",
            format="a torch.save archive per tensor, and a pickle" if archives else "safetensors, and an index",
            chunks="none",
            compression="none",
            concurrency=f"{self.thread_count} thread{'s' * (self.thread_count > 1)}, a file each",
            dtype_on_disk="as in the state" if archives else "as in the state; complex128 as pairs of float64",
            order_of_writes="one after the other in each thread",
            # DCP syncs each file before Python has written the last bytes of its buffer: all of a small file, and so
            # of the metadata. It doesn't sync the index at all.
            synced="some files",
            atomic="no",
            checksum="written, not verified" if archives else "none",
            partial_load="by tensor",
            other_readers="torch.distributed.checkpoint" if archives else "safetensors, transformers, vLLM",
            best_for="Sharded training (FSDP)",
            ranks="the files of each rank, and one for all" if archives else "one rank only",
            resharding="any number of ranks" if archives else "as many ranks as saved",
        )

    def footprint(self, layout: Layout) -> Footprint:
        """A file per thread or per tensor, and the metadata; archives hold tied weights twice."""
        archives = self.serialization == "torch_save"
        stored = [tensor for tensor in layout if archives or tensor.same_as is None]
        files = len(stored)
        if self.single_file_per_rank:
            files = self.thread_count if archives else min(self.thread_count, files)
        names = sum(names_bytes(tensor) for tensor in layout)
        size_bytes = sum(tensor.size_bytes + 4096 for tensor in stored) + 2 * names + 16384 * (files + 1)
        return Footprint(files + 1, size_bytes)

    def save(self, state: State, directory: Path) -> list[Path]:
        """Write the files, then the metadata."""
        from torch.distributed.checkpoint import filesystem, hf_storage, state_dict_saver

        for name, tensor in state.items():  # of a DTensor DCP would write what one rank has
            require_plain(tensor, f"tensor {name!r}")
        with _alone(f"can't save to {directory}"):
            if self.serialization == "torch_save":
                writer = filesystem.FileSystemWriter(
                    directory, single_file_per_rank=self.single_file_per_rank, thread_count=self.thread_count
                )
                metadata = state_dict_saver.save(state, storage_writer=writer, no_dist=True)
                complete = len(metadata.storage_data) == len(state)
                files = {_METADATA, *(entry.relative_path for entry in metadata.storage_data.values())}
                files |= {path.name for path in directory.glob("__0_*")}  # a thread without tensors has a file, too
            else:
                note = note_of(layout_of_state(state))
                tensors = pack(state, note)
                count = self.thread_count if self.single_file_per_rank else max(1, len(tensors))
                by_size = sorted(tensors, key=lambda key: tensors[key].nbytes, reverse=True)
                file_of = {key: number % count + 1 for number, key in enumerate(by_size)}
                writer = hf_storage.HuggingFaceStorageWriter(str(directory), file_of, self.thread_count)
                state_dict_saver.save(tensors, storage_writer=writer, no_dist=True)
                index = json.loads((directory / _INDEX).read_text())
                complete = len(index["weight_map"]) == len(tensors)
                files = {_INDEX, *index["weight_map"].values()}
                index["metadata"][METADATA_KEY] = note.to_json()
                durable.write_atomically(directory / _INDEX, json.dumps(index).encode(), sync=False)
        if not complete:  # DCP itself does not look
            raise CheckpointError(_LOST_THREAD.format(directory))
        return [directory / file for file in files]

    def footprint_together(self, partition: Partition) -> Footprint:
        """Each rank's files, and the metadata, which say of each part of a tensor where it lies."""
        self._refuse_safetensors(partition)
        each = [(self.footprint(layout), count) for layout, count in partition.unique_shards()]
        files = sum((footprint.file_count - 1) * count for footprint, count in each)
        return Footprint(files + 1, sum(footprint.size_bytes * count for footprint, count in each))

    def save_together(self, state: State, directory: Path, part: RankShards, ranks: ProcessGroup) -> list[Path]:
        """Write this rank's files; when all have done so, the first rank writes the metadata."""
        from torch.distributed.checkpoint import filesystem, state_dict_saver

        from ckpt.formats import dcp_planners as planners

        if part.partition.count == 1:
            return self.save(state, directory)
        self._refuse_safetensors(part.partition)
        own = tuple(each for each in part.owned if each.whole.same_as is None)
        with _errors_told(f"can't save to {directory}"), _alone(f"can't save to {directory}"):
            writer = filesystem.FileSystemWriter(
                directory, single_file_per_rank=self.single_file_per_rank, thread_count=self.thread_count
            )
            metadata = state_dict_saver.save(
                {each.whole.name: state[each.whole.name] for each in own},
                storage_writer=writer,
                planner=planners.SavePlanner(own),
            )
        if not all(planners.index_of(each) in metadata.storage_data for each in own):
            raise CheckpointError(_LOST_THREAD.format(directory))
        files = list(directory.glob(f"__{ranks.rank}_*"))
        return files if ranks.rank else [*files, directory / _METADATA]

    def load_together(self, directory: Path, part: RankShards, saved: Partition, ranks: ProcessGroup) -> State:
        """Allocate what this rank wants, and let DCP copy the rows into it."""
        import torch
        from torch.distributed.checkpoint import state_dict_loader

        from ckpt.formats import dcp_planners as planners

        if self.serialization == "safetensors":
            self.refuse_resharding(part, saved)
            return self.load(directory)
        own = tuple(each for each in part.held if each.whole.same_as is None)
        with _errors_told(f"can't load {directory}"), _alone(f"can't load {directory}"):
            reader, _, _ = _open(directory, self.thread_count)
            state = {
                each.whole.name: torch.empty(each.layout.shape, dtype=getattr(torch, each.whole.dtype)) for each in own
            }
            state_dict_loader.load(
                state, storage_reader=reader, planner=planners.LoadPlanner(own), no_dist=ranks.size == 1
            )
        return {each.whole.name: state[each.whole.owner] for each in part.held}

    def _refuse_safetensors(self, partition: Partition) -> None:
        if self.serialization == "safetensors" and partition.count > 1:
            raise CheckpointError(
                f"strategy {self.label}: DCP's safetensors writer makes no checkpoint of what {partition.count} ranks "
                "save, it leaves out the index: take serialization = torch_save, or one rank"
            )

    def load(self, directory: Path, names: Collection[str] | None = None) -> State:
        """Allocate the tensors, and let DCP copy into them."""
        import torch
        from torch.distributed.checkpoint import state_dict_loader

        with _errors_told(f"can't load {directory}"), _alone(f"can't load {directory}"):
            reader, found, note = _open(directory, self.thread_count)
            chosen = select(note.key_of, names, directory)
            known = {note.key_of[name]: found[note.key_of[name]] for name in chosen}
            tensors = {key: torch.empty(each.size, dtype=each.properties.dtype) for key, each in known.items()}
            state_dict_loader.load(tensors, storage_reader=reader, no_dist=True)
            return note.restore(tensors, chosen)

    def load_state(self, directory: Path) -> tuple[Any, dict[str, str]]:
        """Read what others saved: the nested state with its plain values, and why some of these can't be read."""
        tensors = self.load(directory)
        with _errors_told(f"can't load {directory}"):
            if (directory / _INDEX).exists():
                return tensors, {}
            metadata = dcp_metadata.read(directory)
            values, unread = dcp_metadata.values_of(metadata, directory)
            flat = {key: (tensors | values)[key] for key in metadata.state_dict_metadata if key not in unread}
            return dcp_metadata.nested(flat, metadata), unread

    def describe(self, directory: Path) -> tuple[Layout, int]:
        """The tensors, and how many plain values there are beside them, from the metadata alone."""
        with _errors_told(f"can't read {directory}"):
            metadata = dcp_metadata.read(directory)
            tensors = dcp_metadata.tensors_of(metadata)
            layout = tuple(
                TensorLayout(key, tuple(each.size), str(each.properties.dtype).removeprefix("torch."))
                for key, each in tensors.items()
            )
            return layout, len(metadata.state_dict_metadata) - len(tensors)


def _open(directory: Path, thread_count: int) -> tuple[Any, dict[str, Any], Note]:
    """DCP's reader, what it finds by key, and the names of the state."""
    from torch.distributed.checkpoint import filesystem, hf_storage

    if (directory / _INDEX).exists():
        index = json.loads((directory / _INDEX).read_text())
        noted = (index.get("metadata") or {}).get(METADATA_KEY)
        note = Note.from_json(noted) if is_note(noted) else _plain(index["weight_map"])
        hf_reader = hf_storage.HuggingFaceStorageReader(str(directory), thread_count)
        return hf_reader, hf_reader.read_metadata().state_dict_metadata, note
    if not (directory / _METADATA).exists():
        raise CheckpointError(f"{directory} is no complete checkpoint: it has neither {_METADATA} nor {_INDEX}")
    metadata = dcp_metadata.read(directory)
    reader = filesystem.FileSystemReader(directory)
    reader.read_metadata = lambda **_: metadata  # type: ignore[method-assign]  # so that DCP doesn't unpickle it
    tensors = dcp_metadata.tensors_of(metadata)
    return reader, tensors, _plain(tensors)


def _plain(keys: Iterable[str]) -> Note:
    return Note({key: key for key in keys}, [])


@contextmanager
def _errors_told(what: str) -> Iterator[None]:
    """What DCP or, where a rank is lost, gloo raises becomes an error of ours."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # DCP raises one of many kinds
        raise CheckpointError(f"{what}: {type(error).__name__}: {error}") from error


@contextmanager
def _alone(what: str) -> Iterator[None]:
    """Without DCP's warning that there are no other ranks; its errors, which are no `Exception`s, become ours."""
    from torch.distributed.checkpoint.api import CheckpointException

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            yield
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            for cause in causes:
                if not isinstance(cause, Exception):  # an interrupt, say
                    raise cause from None
            told = "; ".join(f"{type(cause).__name__}: {cause}" for cause in causes)
            raise CheckpointError(f"{what}: {told}") from error
