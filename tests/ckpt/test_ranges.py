"""Ranges of files that are read into memory that exists: what arrives, where, and what happens if a file is short."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt.disk import direct_io, durable, page_cache, ranges
from ckpt.disk.io_plan import IoPlan
from ckpt.disk.ranges import Range
from ckpt.errors import CheckpointError

pytestmark = pytest.mark.every_filesystem

BLOCK_BYTES = 2 * 4096
FILE_BYTES = (0, 100, 4096, 5 * BLOCK_BYTES, 7 * BLOCK_BYTES + 1234)
GUARD = 0xA5

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def plan(*, direct: bool) -> IoPlan:
    """A plan that reads past the page cache, or through it."""
    return IoPlan(direct_writes=direct, direct_reads=direct, preallocate=False, why="a test")


@pytest.fixture
def files(tmp_path: Path) -> dict[Path, bytes]:
    """Files of several sizes, with their contents, and not in the page cache."""
    random = np.random.default_rng(1)
    contents = {tmp_path / f"file-{size}": random.bytes(size) for size in FILE_BYTES}
    for path, content in contents.items():
        path.write_bytes(content)
    durable.flush(tmp_path)
    page_cache.evict(tmp_path)
    return contents


@st.composite
def wanted(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """The number of a file, an offset, a size, and where the memory begins after a multiple of 4096."""
    ranges_of_files = []
    for _ in range(draw(st.integers(0, 12))):
        number = draw(st.integers(0, len(FILE_BYTES) - 1))
        near = st.sampled_from([0, 1, 64, 512, 4095, 4096, BLOCK_BYTES, 3 * BLOCK_BYTES])
        offset = min(FILE_BYTES[number], draw(near | st.integers(0, FILE_BYTES[number])))
        size = min(FILE_BYTES[number] - offset, draw(near | st.integers(0, FILE_BYTES[number])))
        ranges_of_files.append((number, offset, size, draw(st.sampled_from([0, 1, 64, 512]) | st.integers(0, 4095))))
    return ranges_of_files


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "buffered"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=wanted(), threads=st.integers(1, 4))
def test_any_ranges(
    direct: bool, files: dict[Path, bytes], drawn: list[tuple[int, int, int, int]], threads: int
) -> None:  # pytest's
    """Any ranges, overlapping ones too, are slices of their files; each is reported once; no other byte changes."""
    paths = list(files)
    room = sum(direct_io.round_up(size) + 2 * 4096 for _, _, size, _ in drawn) + 4096
    memory = np.frombuffer(direct_io.aligned_buffer(room), np.uint8)
    memory[:] = GUARD
    expected = memory.copy()
    items, start = [], 0
    for number, offset, size, shift in drawn:
        begin = start + shift
        items.append(Range(paths[number], offset, memory[begin : begin + size]))
        expected[begin : begin + size] = np.frombuffer(files[paths[number]][offset : offset + size], np.uint8)
        start += direct_io.round_up(shift + size) + 4096
    reported: Counter[Range] = Counter()
    lock = threading.Lock()

    def finished(item: Range) -> None:
        assert item.target.tobytes() == files[item.path][item.offset : item.end]
        with lock:
            reported[item] += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "BLOCK_BYTES", BLOCK_BYTES)
        ranges.read(items, plan(direct=direct), threads, finished)
    assert np.array_equal(expected, memory)
    assert reported == Counter(items)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "buffered"])
def test_a_file_that_ends_too_early(direct: bool, tmp_path: Path) -> None:  # pytest's
    """The error names the file."""
    path = tmp_path / "short"
    path.write_bytes(bytes(10_000))
    target = np.zeros(5000, np.uint8)
    with pytest.raises(CheckpointError, match="short ends before byte 10,001"):
        ranges.read([Range(path, 5001, target)], plan(direct=direct), 2)


def test_a_missing_file(tmp_path: Path) -> None:
    """The error names the file, and files that were opened are closed."""
    (tmp_path / "there").write_bytes(bytes(5 * ranges.BLOCK_BYTES))
    before = len(list(Path("/proc/self/fd").iterdir()))
    memory = np.zeros(5 * ranges.BLOCK_BYTES, np.uint8)
    items = [Range(tmp_path / "a-missing", 0, memory[:10]), Range(tmp_path / "there", 0, memory)]
    with pytest.raises(FileNotFoundError, match="a-missing"):
        ranges.read(items, plan(direct=True), 2)
    assert before == len(list(Path("/proc/self/fd").iterdir()))


def test_many_files_are_not_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is open from its first block to its last: at most one more than there are threads."""
    is_open: set[int] = set()
    most = 0
    lock = threading.Lock()
    real_init, real_exit = direct_io.DirectFile.__init__, direct_io.DirectFile.__exit__

    def opened(file: direct_io.DirectFile, *arguments: Any, **options: Any) -> None:
        nonlocal most
        real_init(file, *arguments, **options)
        with lock:
            is_open.add(file.descriptor)
            most = max(most, len(is_open))

    def closed(file: direct_io.DirectFile, *error: object) -> None:
        with lock:
            is_open.discard(file.descriptor)
        real_exit(file, *error)

    monkeypatch.setattr(direct_io.DirectFile, "__init__", opened)
    monkeypatch.setattr(direct_io.DirectFile, "__exit__", closed)
    targets = np.zeros((50, 5000), np.uint8)
    for number in range(50):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 5000)
    ranges.read((Range(tmp_path / str(n), 0, targets[n]) for n in range(50)), plan(direct=False), 3)
    assert not is_open
    assert most <= 4
    assert [list(np.unique(target)) for target in targets] == [[number] for number in range(50)]


def test_neighbours_share_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand small neighbours, asked for in reverse order, are read by a single request."""
    requests = []
    real = direct_io.DirectFile.read

    def noted(file: direct_io.DirectFile, buffer: memoryview, offset: int) -> int:
        requests.append(offset)
        return real(file, buffer, offset)

    monkeypatch.setattr(direct_io.DirectFile, "read", noted)
    content = np.random.default_rng(2).integers(0, 256, 100_000, np.uint8)
    (tmp_path / "file").write_bytes(content.tobytes())
    target = np.zeros_like(content)
    small = [Range(tmp_path / "file", start, target[start : start + 100]) for start in range(0, len(content), 100)]
    ranges.read(reversed(small), plan(direct=True), 4)
    assert np.array_equal(content, target)
    assert requests == [0]


@pytest.mark.every_filesystem(only="direct")
def test_straight_to_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where offset and address are equal modulo the sector size, direct I/O writes into the target itself."""
    path, size_bytes = tmp_path / "file", 4 * ranges.BLOCK_BYTES
    path.write_bytes(np.random.default_rng(3).bytes(size_bytes))
    durable.flush(tmp_path)
    page_cache.evict(tmp_path)
    straight = 0
    target = np.frombuffer(direct_io.aligned_buffer(size_bytes), np.uint8)
    real = direct_io.DirectFile.read

    def noted(file: direct_io.DirectFile, buffer: memoryview, offset: int) -> int:
        nonlocal straight
        straight += len(buffer) * (np.frombuffer(buffer, np.uint8).ctypes.data == target.ctypes.data + offset)
        return real(file, buffer, offset)

    monkeypatch.setattr(direct_io.DirectFile, "read", noted)
    ranges.read([Range(path, 0, target)], plan(direct=True), 1)
    assert straight == size_bytes
    assert target.tobytes() == path.read_bytes()


def test_an_error_of_the_caller_ends_the_read(tmp_path: Path) -> None:
    """What `finished` raises is raised, and not all is read."""
    (tmp_path / "file").write_bytes(bytes([1]) * 20 * ranges.BLOCK_BYTES)
    memory = np.zeros((20, ranges.BLOCK_BYTES), np.uint8)

    def finished(_: Range) -> None:
        raise CheckpointError("enough")

    items = [Range(tmp_path / "file", n * ranges.BLOCK_BYTES, row) for n, row in enumerate(memory)]
    with pytest.raises(CheckpointError, match="enough"):
        ranges.read(items, plan(direct=False), 1, finished)
    assert memory[:, 0].sum() == 1
