"""The strategies of the original OpenLLaMA-3B comparison have its settings, which have the expected effects on disk."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt.disk import listing
from ckpt.errors import CheckpointError
from ckpt.registry import create
from ckpt.state import compare
from ckpt.state.layout import State, state_bytes
from ckpt.state.sharding import Partition
from ckpt.strategies.tensorstore_basic import TensorstoreBasic
from ckpt.strategies.tensorstore_t5x import TensorstoreT5x
from ckpt.strategies.torch_save import TorchSave
from ckpt.strategy import Strategy
from ckpt.workload import building
from ckpt.workload.spec import StateSpec, layout_of

BASIC, RAW, T5X = TensorstoreBasic(), TensorstoreBasic(compressor="none"), TensorstoreT5x()


@pytest.fixture
def state() -> State:
    """Two tensors of two chunks each, for the basic strategy, and one of one chunk."""
    random = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(shape, generator=random).half()
        for name, shape in {"z.first": (70, 3), "a.second": (3, 100), "m.third": (5,)}.items()
    }


@pytest.mark.parametrize(
    ("shape", "basic", "t5x"),
    [
        ((32000, 3200), [64, 64], [4000, 3200]),
        ((8640, 3200), [64, 64], [4320, 3200]),
        ((3200, 8640), [64, 64], [3200, 4320]),
        ((3200, 3200), [64, 64], [3200, 3200]),
        ((3200,), [64], [3200]),
        ((5, 70), [5, 64], [5, 70]),
        ((), [], []),
        ((0, 3), [1, 3], [1, 3]),
    ],
)
def test_chunk_shapes(shape: tuple[int, ...], basic: list[int], t5x: list[int]) -> None:
    """At most 64 along each dimension against 64 MiB of float32 by halving the largest dimension."""
    assert basic == BASIC.chunk_shape(shape, 4)
    assert t5x == T5X.chunk_shape(shape, 4)


@given(st.lists(st.integers(1, 10**6), max_size=3), st.sampled_from([1, 2, 4, 8, 16]))
def test_t5x_chunks_are_neither_too_large_nor_needlessly_small(shape: list[int], itemsize: int) -> None:
    """A chunk has at most 64 MiB, and is either the whole array or more than a third of that."""
    chunk = T5X.chunk_shape(tuple(shape), itemsize)
    chunk_bytes = math.prod(chunk) * itemsize
    assert chunk_bytes <= 64 * 2**20
    assert chunk == shape or 3 * chunk_bytes > 64 * 2**20
    assert all(part <= size for part, size in zip(chunk, shape, strict=True))


@pytest.mark.parametrize(
    ("strategy", "chunks", "compressor"),
    [
        (BASIC, [64, 3], {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": -1, "blocksize": 0}),
        (RAW, [64, 3], None),
        (T5X, [70, 3], {"id": "gzip", "level": 1}),
    ],
    ids=["basic", "raw", "t5x"],
)
def test_zarr_metadata(
    strategy: Strategy, chunks: list[int], compressor: dict[str, Any] | None, state: State, tmp_path: Path
) -> None:
    """float16 lies on disk as float32; a compressor that was left out is blosc (shuffle -1: by bytes, as the
    elements have 4), and one without a level has level 1.
    """
    strategy.save(state, tmp_path)
    assert {f"{name}.zarr" for name in state} | {"metadata.json"} == {path.name for path in tmp_path.iterdir()}
    found = json.loads((tmp_path / "z.first.zarr" / ".zarray").read_text())
    expected = {"dtype": "<f4", "shape": [70, 3], "chunks": chunks, "compressor": compressor, "zarr_format": 2}
    assert expected == {key: found[key] for key in expected}
    assert [torch.float16] * 3 == [tensor.dtype for tensor in strategy.load(tmp_path).values()]


@pytest.mark.parametrize("strategy", [BASIC, RAW, T5X], ids=["basic", "raw", "t5x"])
@pytest.mark.parametrize(
    ("tensor", "on_disk"),
    [
        (torch.ones(3, dtype=torch.float16), "<f4"),
        (torch.ones(3, dtype=torch.bfloat16), "<f4"),
        (torch.tensor([1, float("inf")], dtype=torch.float16), "<f4"),
        (torch.tensor([1, float("nan")], dtype=torch.float16), "<f2"),
        (torch.tensor([1, float("nan")], dtype=torch.bfloat16), "bfloat16"),
        (torch.ones(3, dtype=torch.float64), "<f8"),
        (torch.ones(3, dtype=torch.int64), "<i8"),
        (torch.ones(3, dtype=torch.bool), "|b1"),
        (torch.ones(3, dtype=torch.float8_e5m2), "float8_e5m2"),
    ],
    ids=str,
)
def test_dtype_on_disk(strategy: Strategy, tensor: torch.Tensor, on_disk: str, tmp_path: Path) -> None:
    """16-bit floats lie there as float32, unless a cast would lose the bits of a NaN; all else as it is: an int64
    counter, which float32 could not hold, too.
    """
    strategy.save({"x": tensor}, tmp_path)
    assert on_disk == json.loads((tmp_path / "x.zarr" / ".zarray").read_text())["dtype"]


@pytest.mark.parametrize(
    ("strategy", "chunk", "decode"),
    [(RAW, (64, 3), bytes), (T5X, (70, 3), gzip.decompress)],
    ids=["raw", "t5x"],
)
def test_chunks_are_readable_without_tensorstore(
    strategy: Strategy, chunk: tuple[int, int], decode: Callable[[bytes], bytes], state: State, tmp_path: Path
) -> None:
    """The first chunk holds the first rows as little-endian float32: any zarr reader understands it."""
    strategy.save(state, tmp_path)
    values = np.frombuffer(decode((tmp_path / "z.first.zarr" / "0.0").read_bytes()), "<f4").reshape(chunk)
    assert np.array_equal(state["z.first"].float().numpy()[: chunk[0]], values)


@pytest.mark.parametrize("strategy", [BASIC, T5X], ids=["basic", "t5x"])
def test_metadata_json(strategy: Strategy, state: State, tmp_path: Path) -> None:
    """`metadata.json` holds the names, in the order of the state, and their count."""
    strategy.save(state, tmp_path)
    found = json.loads((tmp_path / "metadata.json").read_text())
    assert list(state) == found["param_names"]
    assert len(state) == found["param_count"]


@pytest.mark.parametrize(
    ("strategy", "share"),
    [(TorchSave(), 1.0), (BASIC, 0.943), (T5X, 0.950), (RAW, 2.0)],
    ids=["torch_save", "basic", "t5x", "raw"],
)
def test_sizes(strategy: Strategy, share: float, write_config: Callable[..., str], tmp_path: Path) -> None:
    """Values of bfloat16 precision in float16, as of a model trained in bfloat16, take the share of
    their bytes that the original comparison reports: the compressors undo the cast to float32 and a little more.
    """
    model = write_config(vocab_size=1024, hidden_size=512, intermediate_size=1024, num_hidden_layers=1)
    spec = StateSpec(model, values="normal-bfloat16")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    strategy.save(building.build(spec), checkpoint)
    layout = layout_of(spec)
    size_bytes = listing.inventory(checkpoint).apparent_bytes
    assert share == pytest.approx(size_bytes / state_bytes(layout), rel=0.01)
    uncompressed = max(share, 2.0) if share < 1 else share
    assert uncompressed * state_bytes(layout) == pytest.approx(
        strategy.footprint(Partition.single(layout)).size_bytes, rel=0.05
    )


class Recorder:
    """Stands where `tensorstore.open` was and notes each call, and each wait for its end, with its context."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.contexts: list[tensorstore.Context] = []
        self._open = tensorstore.open

    def open(self, spec: dict[str, Any], *, context: tensorstore.Context, **options: bool) -> Any:
        """Open an array as before."""
        parameter = Path(spec["kvstore"]["path"]).name.removesuffix(".zarr")
        self.contexts.append(context)
        return self._noted("open", parameter, self._open(spec, context=context, **options))

    def _noted(self, action: str, parameter: str, future: Any) -> Any:
        self.events.append((action, parameter))
        recorder = self

        class Future:
            def result(self) -> Any:
                result = future.result()
                recorder.events.append((f"waited for {action}", parameter))
                return Store(result) if action == "open" else result

        class Store:
            def __init__(self, store: Any) -> None:
                self._store = store

            def write(self, array: np.ndarray) -> Future:
                return recorder._noted("write", parameter, self._store.write(array))

            def read(self) -> Future:
                return recorder._noted("read", parameter, self._store.read())

        return Future()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Record what a strategy asks of TensorStore."""
    recorder = Recorder()
    monkeypatch.setattr(tensorstore, "open", recorder.open)
    return recorder


@pytest.mark.parametrize("strategy", [BASIC, T5X], ids=["basic", "t5x"])
def test_one_parameter_at_a_time(strategy: Strategy, state: State, tmp_path: Path, recorder: Recorder) -> None:
    """Each parameter's write has been waited for before the next one is opened, in the order of the state; so
    with reads.
    """

    def one_after_the_other(action: str) -> list[tuple[str, str]]:
        steps = ("open", "waited for open", action, f"waited for {action}")
        return [(step, name) for name in state for step in steps]

    strategy.save(state, tmp_path)
    assert one_after_the_other("write") == recorder.events
    recorder.events.clear()
    strategy.load(tmp_path)
    assert one_after_the_other("read") == recorder.events


@pytest.mark.parametrize(("strategy", "concurrency"), [(BASIC, {}), (T5X, {"limit": 128})], ids=["basic", "t5x"])
def test_context(
    strategy: Strategy, concurrency: dict[str, int], state: State, tmp_path: Path, recorder: Recorder
) -> None:
    """T5X allows 128 file operations at once, on save and on load; basic leaves the default."""
    strategy.save(state, tmp_path)
    strategy.load(tmp_path)
    assert [concurrency] * 6 == [context["file_io_concurrency"].to_json() for context in recorder.contexts]


def test_torch_save_is_one_native_call(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole state dict goes into one file with one call, and PyTorch alone reads it."""
    calls = []
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda saved, path: (calls.append(list(saved)), save(saved, path)))
    create("torch_save").save(state, tmp_path)
    assert [list(state)] == calls
    (file,) = tmp_path.iterdir()
    assert compare.first_difference(state, torch.load(file, weights_only=True)) is None


class _Malicious:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self._path,)


def test_torch_load_unpickles_tensors_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle that would run code is refused, and not run, even where PyTorch's default has been turned off."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    trap = tmp_path / "trap"
    strategy = create("torch_save")
    torch.save({"weight": _Malicious(trap)}, tmp_path / "state.pth")  # a save of ours refuses it
    with pytest.raises(CheckpointError, match="Weights only load failed"):
        strategy.load(tmp_path)
    assert not trap.exists()
