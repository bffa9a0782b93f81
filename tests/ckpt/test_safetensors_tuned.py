"""How safetensors_tuned moves bytes: past the page cache or through it, with how much memory, from where."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt.disk import direct_io, durable, io_plan, mounts, page_cache, ranges
from ckpt.errors import CheckpointError
from ckpt.formats import pieces, safetensors_header, safetensors_reading
from ckpt.formats.safetensors_metadata import TensorInfo
from ckpt.state import dtypes
from ckpt.state.compare import first_difference
from ckpt.state.layout import layout_of_state
from ckpt.state.sharding import Partition
from ckpt.strategies import safetensors_tuned
from ckpt.strategies.safetensors_tuned import SafetensorsTuned
from jobs.node.usage import measure_usage

MIB = 2**20


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """48 MiB in tensors of every kind of size."""
    random = torch.Generator().manual_seed(1)
    shapes = [(2048, 2048), (1000, 999), (7,), (), (2048, 4096), (3, 1)]
    return {str(number): torch.randn(shape, generator=random) for number, shape in enumerate(shapes)}


def direct_opens(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Note for each file that is opened for data whether that is past the page cache."""
    seen = []
    init = direct_io.DirectFile.__init__

    def note(self: direct_io.DirectFile, path: Path, flags: int, *, direct: bool = True) -> None:
        init(self, path, flags, direct=direct)
        seen.append(self.direct)

    monkeypatch.setattr(direct_io.DirectFile, "__init__", note)
    return seen


def test_past_the_page_cache(state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save leaves nothing in the page cache; a cold load goes past it, a warm one through it."""
    seen = direct_opens(monkeypatch)
    strategy = SafetensorsTuned()
    strategy.save(state, tmp_path)
    if not all(seen):
        pytest.skip(f"{mounts.mount_of(tmp_path).filesystem} refuses O_DIRECT")
    assert page_cache.resident_fraction(tmp_path) < 0.01
    strategy.load(tmp_path)
    (tmp_path / "model.safetensors").read_bytes()
    strategy.load(tmp_path)
    assert [True, True, False] == seen


@pytest.mark.parametrize(
    ("several", "options", "count"),
    [(True, {}, 3), (False, {}, 1), (True, {"shard_mib": 0}, 1), (False, {"shard_mib": 20}, 2)],
    ids=["GlusterFS", "elsewhere", "a single file is asked for", "several are asked for"],
)
def test_how_many_files(
    several: bool,
    options: dict[str, int],
    count: int,
    state: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Several where each lies on one server, unless the option says otherwise; never more than were planned for."""
    monkeypatch.setattr(io_plan, "_plans", {})
    monkeypatch.setattr(safetensors_tuned, "FILE_MIB", 16)
    io_plan.remember(tmp_path, io_plan.IoPlan(False, False, False, "a test", several_files=several))
    strategy = SafetensorsTuned(**options)
    files = strategy.save(state, tmp_path)

    assert count == sum(file.suffix == ".safetensors" for file in files)
    assert len(files) <= strategy.footprint(Partition.single(layout_of_state(state))).file_count
    assert first_difference(state, strategy.load(tmp_path)) is None


def test_memory_of_a_save(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Beside the state, a save takes its buffers, however large the state is, and tensors that aren't contiguous."""
    strategy = SafetensorsTuned(threads=2, block_mib=1)
    strategy.save({"warm": torch.ones(1)}, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with measure_usage() as cost:
        strategy.save(state, tmp_path)
    if cost.peak_extra_bytes < 0:
        pytest.skip("the kernel doesn't let the peak of memory be reset here")
    assert cost.peak_extra_bytes < 12 * MIB


@pytest.mark.parametrize(("device_wants", "length", "copied"), [(4, MIB, False), (4096, MIB, True), (4, 5000, True)])
def test_straight_from_the_tensor(device_wants: int, length: int, copied: bool, tmp_path: Path) -> None:
    """Where the device takes a tensor's address and length, its bytes are written as they lie; else they are copied
    into an aligned buffer, and padded to whole pages.
    """
    memory, buffer = direct_io.aligned_buffer(2 * MIB), direct_io.aligned_buffer(2 * MIB)
    tensor = np.frombuffer(memory, np.uint8)[64 : 64 + length]  # as torch aligns
    tensor[:] = 7
    buffer[:] = b"\1" * len(buffer)
    with direct_io.DirectFile(tmp_path / "file", os.O_RDWR | os.O_CREAT) as file:
        file.memory_alignment = device_wants
        data = pieces._aligned([tensor], buffer, file)
    written = np.frombuffer(data, np.uint8)
    assert copied == (written.ctypes.data != tensor.ctypes.data)
    assert len(written) % 4096 == 0
    assert bytes(written) == b"\7" * length + b"\0" * (len(written) - length)


@pytest.mark.parametrize("place", [0, 64, 8], ids=["as files were until now", "as torch has it", "as others write it"])
@pytest.mark.parametrize("cached", [True, False])
def test_wherever_the_data_begins(
    place: int, cached: bool, state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files whose data begins elsewhere in a page are read as well, through a buffer."""
    monkeypatch.setattr(safetensors_header, "DATA_OFFSET", place)
    tensors = safetensors_header.assign_offsets([TensorInfo(tensor) for tensor in layout_of_state(state)])
    header = safetensors_header.header_bytes(tensors, {})
    assert len(header) % 4096 == place
    data = sorted(tensors, key=lambda info: info.start)
    content = header + b"".join(dtypes.to_bytes(state[info.layout.name]).tobytes() for info in data)
    (tmp_path / "model.safetensors").write_bytes(content)
    if not cached:
        durable.flush(tmp_path)
        page_cache.evict(tmp_path)
    assert first_difference(state, SafetensorsTuned().load(tmp_path)) is None


def test_nothing_large_is_copied_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tensors whose memory begins where the file has them in a page, all but the ends goes straight to the disk and
    straight from it, where direct I/O may.
    """
    size_bytes = 5 * ranges.BLOCK_BYTES
    memory = direct_io.aligned_buffer(size_bytes + 4096)
    tensor = torch.frombuffer(memory, dtype=torch.uint8, count=size_bytes, offset=64).random_(to=256)
    reads: list[tuple[int, int]] = []
    read = direct_io.DirectFile.read

    def noted(file: direct_io.DirectFile, buffer: memoryview, offset: int) -> int:
        reads.append((np.frombuffer(buffer, np.uint8).ctypes.data, len(buffer)))
        return read(file, buffer, offset)

    SafetensorsTuned().save({"w": tensor}, tmp_path)
    durable.flush(tmp_path)
    page_cache.evict(tmp_path)
    memory = direct_io.aligned_buffer(size_bytes + 4096)
    target = torch.frombuffer(memory, dtype=torch.uint8, count=size_bytes, offset=64)
    monkeypatch.setattr(safetensors_reading.memory, "empty", lambda _: target)
    monkeypatch.setattr(direct_io.DirectFile, "read", noted)
    loaded = SafetensorsTuned().load(tmp_path)["w"]
    assert torch.equal(tensor, loaded)
    begin, end = target.data_ptr(), target.data_ptr() + target.nbytes
    straight = sum(length for address, length in reads if begin <= address < end)
    assert straight >= target.nbytes - 2 * ranges.BLOCK_BYTES


def test_verification_names_the_tensor(tmp_path: Path) -> None:
    """A flipped bit is told with the tensor in which it lies, and is not noticed unless asked for."""
    SafetensorsTuned().save({"first": torch.zeros(1024), "second": torch.zeros(1024)}, tmp_path)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    SafetensorsTuned().load(tmp_path)
    with pytest.raises(CheckpointError, match="'second' is not what was written"):
        SafetensorsTuned(verify=True).load(tmp_path)


def test_a_tensor_that_is_not_contiguous_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies live only while they are written: one of many such tensors at a time, not all."""
    alive: list[int] = []
    largest = 0
    to_bytes = dtypes.to_bytes

    class Counted(np.ndarray):
        def __del__(self) -> None:
            if self.base is None:
                alive.pop()

    def counted(tensor: torch.Tensor) -> np.ndarray:
        nonlocal largest
        alive.append(1)
        largest = max(largest, len(alive))
        copy = Counted(tensor.numel() * tensor.element_size(), np.uint8)
        copy[:] = to_bytes(tensor)
        return copy

    monkeypatch.setattr(pieces.dtypes, "to_bytes", counted)
    state = {str(number): torch.randn(512, 1024).T for number in range(16)}  # 2 MiB each
    SafetensorsTuned(threads=1, block_mib=1).save(state, tmp_path)
    monkeypatch.undo()
    assert largest <= 3
    assert all(torch.equal(tensor, state[name]) for name, tensor in SafetensorsTuned().load(tmp_path).items())
