"""`DirectReader` in a single process: what every writer of DCP wrote, slices of it, checksums, and hostile files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch.distributed.checkpoint import FileSystemWriter, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import SerializationFormat

from ckpt.dcp import DirectReader, DirectWriter, reader
from ckpt.dcp.slices import Slice
from ckpt.disk.io_plan import IoPlan
from ckpt.formats.dcp_entries import Stored
from support import dcp_states

TENSORS = {"w": torch.randn(300, 200), "b": torch.arange(7), "s": torch.tensor(2.5), "e": torch.zeros(0, 3)}


@pytest.mark.parametrize("direct", [True, False, "auto"])
@pytest.mark.parametrize("writer", ["DirectWriter", "torch"])
def test_it_reads_every_kind(tmp_path: Path, writer: str, direct: Any) -> None:
    """Tensors of every kind and plain values come back bit for bit, from its own files and from PyTorch's."""
    state = dcp_states.every_kind()
    dcp_states.save(state, tmp_path / "it", DirectWriter(tmp_path / "it") if writer == "DirectWriter" else None)
    loaded = dcp_states.load(state, tmp_path, DirectReader(tmp_path / "it", direct=direct))
    assert dcp_states.flat(loaded) == dcp_states.flat(state)


@pytest.mark.parametrize(
    "writer",
    [
        lambda path: FileSystemWriter(path, serialization_format=SerializationFormat.SAFETENSORS, thread_count=2),
        lambda path: HuggingFaceStorageWriter(str(path)),
        lambda path: HuggingFaceStorageWriter(str(path), {"w": 1, "b": 2, "s": 1, "e": 2}),
    ],
    ids=["safetensors in .distcp", "Hugging Face", "two files"],
)
def test_it_reads_safetensors(tmp_path: Path, writer: Any) -> None:
    """DCP's other serialization is read, too."""
    dcp_states.save(TENSORS, tmp_path / "it", writer(tmp_path / "it"))
    loaded = dcp_states.load(TENSORS, tmp_path, DirectReader(tmp_path / "it"))
    assert dcp_states.flat(loaded) == dcp_states.flat(TENSORS)


def test_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A contiguous tensor on the CPU is read into its own memory; others are copied to."""
    dcp_states.save(TENSORS, tmp_path, DirectWriter(tmp_path / "it"))
    copied = []
    monkeypatch.setattr(reader, "_copy", lambda target, source: (copied.append(target.shape), target.copy_(source)))
    into = {"w": torch.zeros(200, 300).t(), "b": torch.zeros(7, dtype=torch.int64)}
    address = into["b"].data_ptr()
    dcp_states.load_into(into, DirectReader(tmp_path / "it"))
    assert dcp_states.flat(into) == dcp_states.flat({name: TENSORS[name] for name in into})
    assert (copied, into["b"].data_ptr()) == ([(300, 200)], address)


def test_another_dtype_is_converted(tmp_path: Path) -> None:
    """As PyTorch's reader does."""
    dcp_states.save(TENSORS, tmp_path, DirectWriter(tmp_path / "it"))
    into = {"w": torch.zeros(300, 200, dtype=torch.float64)}
    dcp_states.load_into(into, DirectReader(tmp_path / "it"))
    assert torch.equal(into["w"], TENSORS["w"].double())


@pytest.mark.parametrize("key", ["w", "b", "step"])
def test_a_flipped_bit(tmp_path: Path, key: str) -> None:
    """`verify` detects a changed bit in a large tensor, a small one or a value, and else changes nothing."""
    state = TENSORS | {"step": 7}
    metadata = dcp_states.save(state, tmp_path, DirectWriter(tmp_path / "it"))
    verifying = DirectReader(tmp_path / "it", verify=True)
    assert dcp_states.flat(dcp_states.load(state, tmp_path, verifying)) == dcp_states.flat(state)
    info = next(info for index, info in metadata.storage_data.items() if index.fqn == key)
    path = tmp_path / "it" / info.relative_path
    content = bytearray(path.read_bytes())
    content[info.offset + (info.data_start or 0) + 9] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointException, match=f"{key}' is not what was written"):
        dcp_states.load(state, tmp_path, verifying)


def test_checksums_that_nobody_stored(tmp_path: Path) -> None:
    """They can't be verified: that is an error, instead of a load that compares nothing."""
    dcp_states.save(TENSORS, tmp_path / "it")
    with pytest.raises(CheckpointException, match="has no checksum of"):
        dcp_states.load(TENSORS, tmp_path, DirectReader(tmp_path / "it", verify=True))


class Hostile:
    """An object that runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self._mark,)


def test_hostile_metadata(tmp_path: Path) -> None:
    """Code that `.metadata` names isn't run."""
    dcp_states.save(TENSORS, tmp_path, DirectWriter(tmp_path / "it"))
    path = tmp_path / "it" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    metadata.planner_data = Hostile(tmp_path / "ran")
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointException, match="which no checkpoint should"):
        dcp_states.load(TENSORS, tmp_path, DirectReader(tmp_path / "it"))
    assert not (tmp_path / "ran").exists()


def test_hostile_values(tmp_path: Path) -> None:
    """DCP unpickles plain values: code that they name is run only if the reader may trust them."""
    state = {"step": Hostile(tmp_path / "ran")}
    dcp_states.save(state, tmp_path, DirectWriter(tmp_path / "it"))
    with pytest.raises(CheckpointException, match="trusted=True"):
        dcp_states.load_into({"step": 0}, DirectReader(tmp_path / "it"))
    assert not (tmp_path / "ran").exists()
    dcp_states.load_into({"step": 0}, DirectReader(tmp_path / "it", trusted=True))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"), [("shorter", "ends"), ("gone", "No such file"), ("empty", "no complete")]
)
def test_damage(tmp_path: Path, change: str, message: str) -> None:
    """A file that is too short or missing, or a checkpoint without metadata, is one clear error."""
    dcp_states.save(TENSORS, tmp_path, DirectWriter(tmp_path / "it"))
    path = tmp_path / "it" / "__0_0.distcp"
    if change == "shorter":
        path.write_bytes(path.read_bytes()[:-5000])
    elif change == "gone":
        path.unlink()
    else:
        (tmp_path / "it" / ".metadata").unlink()
    with pytest.raises(CheckpointException, match=message):
        dcp_states.load(TENSORS, tmp_path, DirectReader(tmp_path / "it"))


@pytest.mark.parametrize("claim", [-1, 10**12])
def test_metadata_that_leads_outside_of_a_part(tmp_path: Path, claim: int) -> None:
    """Where a tensor begins must be inside of its part of the file."""
    dcp_states.save(TENSORS, tmp_path, DirectWriter(tmp_path / "it"))
    path = tmp_path / "it" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    for info in metadata.storage_data.values():
        info.data_start = claim
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointException, match="is damaged"):
        dcp_states.load(TENSORS, tmp_path, DirectReader(tmp_path / "it"))


@some.composite
def boxes(draw: some.DrawFn) -> tuple[list[int], list[int], list[int], list[int]]:
    """A shape, the order of its dimensions in the file, and the offsets and lengths of a box in it."""
    shape = draw(some.lists(some.integers(0, 5), max_size=4))
    order = draw(some.permutations(range(len(shape))))
    offsets = [draw(some.integers(0, size)) for size in shape]
    lengths = [draw(some.integers(0, size - offset)) for size, offset in zip(shape, offsets, strict=True)]
    return shape, list(order), offsets, lengths


@settings(deadline=None)
@given(boxes(), some.integers(0, 9))
def test_slices(box: tuple[list[int], list[int], list[int], list[int]], start: int) -> None:
    """The bytes of a slice contain it, whatever the order of the dimensions in the file; no others if it is dense."""
    shape, order, offsets, lengths = box
    count = torch.Size(shape).numel()
    values = torch.arange(count, dtype=torch.int16).reshape([shape[dimension] for dimension in order])
    tensor = values.permute([order.index(dimension) for dimension in range(len(shape))])
    content = torch.cat([torch.zeros(start, dtype=torch.uint8), values.reshape(-1).view(torch.uint8)])
    stored = Stored(Path("file"), start, torch.int16, tuple(shape), tuple(tensor.stride()))
    part = Slice(stored, tuple(offsets), tuple(lengths))
    expected = tensor[tuple(slice(offset, offset + length) for offset, length in zip(offsets, lengths, strict=True))]
    read = content[part.offset : part.offset + part.size_bytes].clone()
    assert torch.equal(part.view(read), expected)
    assert len(read) == part.size_bytes >= expected.nbytes
    if part.is_dense:
        assert bytes(read.tolist()) == dcp_states.bits(expected)[2]


@settings(deadline=None)
@given(boxes())
def test_slices_of_a_contiguous_tensor(box: tuple[list[int], list[int], list[int], list[int]]) -> None:
    """Rows are dense: they are read without anything between them."""
    shape, _, offsets, lengths = box
    strides = tuple(torch.empty(shape, device="meta").stride())
    stored = Stored(Path("file"), 0, torch.float32, tuple(shape), strides)
    rows = [*offsets[:1], *(0 for _ in shape[1:])], [*lengths[:1], *shape[1:]]
    part = Slice(stored, tuple(rows[0]), tuple(rows[1]))
    assert part.is_dense
    assert part.size_bytes == 4 * torch.Size(rows[1]).numel()


def test_batches_bound_the_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What isn't read in place is read in batches, so that buffers don't double the memory."""
    from ckpt.dcp import reads

    monkeypatch.setattr(reads, "_BUFFER_BYTES", 3000)
    (tmp_path / "file").write_bytes(bytes(range(250)) * 40)
    sizes = []
    got: dict[int, bytes] = {}
    monkeypatch.setattr(reads.ranges, "read", counting(reads.ranges.read, sizes))
    parts = [
        reads.Read(tmp_path / "file", at, 1000, lambda content, at=at: got.update({at: bytes(content.tolist())}))
        for at in range(0, 9000, 1000)
    ]
    reads.run(parts, IoPlan(False, False, False, "a test"), 2)
    assert got == {at: (bytes(range(250)) * 40)[at : at + 1000] for at in range(0, 9000, 1000)}
    assert sizes == [3, 3, 3]


def counting(read: Any, sizes: list[int]) -> Any:
    """Note how many ranges are read at once."""

    def counted(ranges: Any, *others: Any) -> None:
        sizes.append(len(ranges))
        read(ranges, *others)

    return counted
