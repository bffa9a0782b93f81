"""tensorstore_tuned: how arrays are cut, what lies on disk, what others see, and how little is waited for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt.disk import listing
from ckpt.errors import CheckpointError
from ckpt.formats.chunks import chunk_shape
from ckpt.strategies.tensorstore_tuned import TensorstoreTuned
from ckpt.workload import building
from ckpt.workload.spec import StateSpec


@given(st.lists(st.integers(0, 5000), max_size=3).map(tuple), st.sampled_from([1, 2, 4, 8]), st.integers(1, 10**7))
def test_chunks(shape: tuple[int, ...], itemsize: int, most_bytes: int) -> None:
    """A chunk is no larger than asked for, unless an element is, and it is one piece of the tensor's memory."""
    chunk = chunk_shape(shape, itemsize, most_bytes)
    chunk_bytes = itemsize * math.prod(chunk)
    assert chunk_bytes <= max(most_bytes, itemsize)
    whole = [max(1, size) for size in shape]
    assert not shape or any(
        set(chunk[:axis]) <= {1} and chunk[axis + 1 :] == whole[axis + 1 :] for axis in range(len(shape))
    )


@pytest.mark.parametrize(
    ("shape", "itemsize", "expected"),
    [
        ((32000, 3200), 2, [8000, 3200]),
        ((8640, 3200), 2, [8640, 3200]),
        ((32000, 3200), 4, [4000, 3200]),
        ((1, 10**8), 2, [1, 25_000_000]),
        ((127, 1_000_003), 2, [32, 1_000_003]),
        ((3200,), 2, [3200]),
        ((), 4, []),
        ((0, 7), 4, [1, 7]),
    ],
)
def test_chunks_of_64_mib(shape: tuple[int, ...], itemsize: int, expected: list[int]) -> None:
    """Divisors where they serve nearly as well, so that no chunk is padded; equal parts where there are none."""
    assert expected == chunk_shape(shape, itemsize, 64 * 2**20)


def test_what_lies_on_disk(tmp_path: Path) -> None:
    """A zarr group that lists the tensors, and in it an array for each, in its own dtype, in standard terms."""
    TensorstoreTuned(chunk_mib=1).save({"w": torch.randn(1024, 512), "tied": torch.ones(1)}, tmp_path)
    assert {"zarr.json", "w", "tied"} == {path.name for path in tmp_path.iterdir()}
    assert {"zarr.json", "c.0.0", "c.1.0"} == {path.name for path in (tmp_path / "w").iterdir()}
    told = json.loads((tmp_path / "w" / "zarr.json").read_text())
    expected = {"zarr_format": 3, "node_type": "array", "data_type": "float32", "shape": [1024, 512]}
    assert expected == {key: told[key] for key in expected}
    assert [{"name": "bytes", "configuration": {"endian": "little"}}] == told["codecs"]
    assert (tmp_path / "w" / "c.0.0").stat().st_size == 2**20


def test_zarr_python_sees_a_group(tmp_path: Path) -> None:
    """zarr-python opens the whole as a group, with all arrays; bfloat16 where it is stored as plain integers."""
    import zarr

    state = {"a": torch.randn(3, 4), "b": torch.randn(5).bfloat16()}
    TensorstoreTuned(plain_types=True, compression="zstd", crc32c=True).save(state, tmp_path)
    group: Any = zarr.open_group(tmp_path, mode="r")
    assert {"a", "b"} == set(group.array_keys())
    assert np.array_equal(state["a"].numpy(), group["a"][:])
    assert group["b"].attrs["dtype"] == "bfloat16"
    assert np.array_equal(state["b"].view(torch.uint16).numpy(), group["b"][:])


def test_a_tensorstore_program_reads_bfloat16(tmp_path: Path) -> None:
    """The native dtype is the one that other TensorStore programs read."""
    weight = torch.randn(5).bfloat16()
    TensorstoreTuned().save({"b": weight}, tmp_path)
    found = ts.open({"driver": "zarr3", "kvstore": f"file://{tmp_path}/b/"}).result()
    assert found.dtype.name == "bfloat16"
    assert weight.float().tolist() == found.read().result().astype(np.float32).tolist()


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.78), ("float16", 0.77)])
def test_zstd_makes_weights_smaller(dtype: str, most: float, tmp_path: Path) -> None:
    """Weights of bfloat16 precision take so much of their bytes at most, in either 16-bit type."""
    state = building.build(StateSpec("llama-15m", tensors=30, dtype=dtype))  # type: ignore[arg-type]
    TensorstoreTuned(compression="zstd").save(state, tmp_path)
    size_bytes = sum(tensor.nbytes for tensor in state.values())
    share = listing.inventory(tmp_path).apparent_bytes / size_bytes
    assert 0.6 < share <= most


def test_everything_is_started_before_anything_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All arrays are opened before the first open is waited for, on save and on load."""
    events: list[str] = []
    opened = ts.open

    class Future:
        def __init__(self, future: Any) -> None:
            self._future = future

        def exception(self) -> Any:
            events.append("wait")
            return self._future.exception()

        def result(self) -> Any:
            return self._future.result()

    def note(*arguments: Any, **options: Any) -> Future:
        events.append("open")
        return Future(opened(*arguments, **options))

    monkeypatch.setattr(ts, "open", note)
    state = {str(number): torch.ones(4) for number in range(5)}
    for work in (lambda: TensorstoreTuned().save(state, tmp_path), lambda: TensorstoreTuned().load(tmp_path)):
        events.clear()
        work()
        assert events[:10] == ["open"] * 5 + ["wait"] * 5


@pytest.mark.parametrize(
    "text",
    ["", "{", "{}", '{"attributes": {"ckpt": {"tensors": 1}}}', '{"attributes": {"ckpt": {"tensors": [["w"]]}}}',
     '{"attributes": {"ckpt": {"tensors": [["w", "float32", "x"]]}}}',
     '{"attributes": {"ckpt": {"tensors": [["w", "float99", "w"]]}}}',
     '{"attributes": {"ckpt": {"tensors": [["../../w", "float32", "../../w"]]}}}'],
)  # fmt: skip
def test_damaged_groups(text: str, tmp_path: Path) -> None:
    """Whatever the group says, the load ends with one message."""
    TensorstoreTuned().save({"w": torch.ones(2)}, tmp_path)
    (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(CheckpointError):
        TensorstoreTuned().load(tmp_path)


@pytest.mark.parametrize("options", [{"level": 3}, {"shard_mib": 16}])
def test_contradictions(options: dict[str, int]) -> None:
    """A level of no compression, and a shard smaller than a chunk, are told."""
    assert TensorstoreTuned(**options).contradiction  # type: ignore[arg-type]
