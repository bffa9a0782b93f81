"""What every strategy must do, whatever its format. A new strategy adds one class of two lines at the end."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt.disk import listing
from ckpt.errors import CheckpointError, ContradictionError, UnknownStrategyError
from ckpt.formats import safetensors_files
from ckpt.registry import create, names, strategy_class
from ckpt.state import compare
from ckpt.state.dtypes import BYTES_PER_ELEMENT
from ckpt.state.layout import Layout, State, TensorLayout
from ckpt.state.sharding import Partition
from ckpt.strategies import (
    hdf5,
    safetensors_file,
    tensorstore_ocdbt,
    tensorstore_t5x,
    tensorstore_t5x_real,
    tensorstore_tuned,
    zarr_python,
)
from ckpt.strategy import Checksum, Strategy
from ckpt.workload import building

# One test runs under several classes: hypothesis wants to hear that this is meant.
PER_STRATEGY = settings(
    max_examples=40,
    suppress_health_check=[
        HealthCheck.differing_executors,
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],
)

HOSTILE_NAMES = [
    "", ".", "..", "/", "../../up", "/absolute", ".hidden", "a.b", "a_b", "a/b", "a%2Fb", "%", "%~", "~", "nul\0",
    "metadata.json", ".zarray", "a.b.zarr", "A.B", "x" * 300, "x" * 301, "ü" * 200, "😀" * 90, "\ud800", "line\nbreak",
    "__metadata__", "%ED%A0%80", "zarr.json", "names.json", "names", "_METADATA", "commit_success.txt", "c", "d",
    "manifest.ocdbt", "0", "array_metadatas", "_sharding",
]  # fmt: skip

BIT_PATTERNS = [
    b"\0",  # zeros
    b"\0\x80", b"\0\0\0\x80", b"\0\0\0\0\0\0\0\x80",  # -0.0 in 16, 32 and 64 bits
    b"\0\x7c", b"\x80\x7f", b"\0\0\x80\xff", b"\0\0\0\0\0\0\xf0\x7f",  # infinities
    b"\x01\x7c", b"\x81\x7f", b"\x01\0\x80\x7f", b"\x42\0\0\0\0\0\xf0\xff",  # signalling NaNs with a payload
    b"\x01\0", b"\x01\0\0\0", b"\x01\0\0\0\0\0\0\0",  # denormals
    b"\xff",
]  # fmt: skip


def _fits_json(name: str) -> bool:
    """JSON makes one character of a high and a low surrogate that follow each other; all else it keeps."""
    return not re.search("[\ud800-\udbff][\udc00-\udfff]", name)


def parameter_names() -> st.SearchStrategy[str]:
    """Any text, lone surrogates included, and the names that have broken others."""
    return st.one_of(st.sampled_from(HOSTILE_NAMES), st.text(st.characters(exclude_categories=())).filter(_fits_json))


@st.composite
def tensors(draw: st.DrawFn, *, views: bool) -> torch.Tensor:
    """A tensor of any dtype, 0-d to 3-d, with any bits; as a view into a larger one, too, if asked for."""
    dtype = draw(st.sampled_from(sorted(BYTES_PER_ELEMENT)))
    size = st.one_of(st.integers(0, 4), st.sampled_from([63, 64, 65, 130]))
    shape = draw(st.lists(size, max_size=3).filter(lambda sizes: math.prod(sizes) <= 9000))
    kind = draw(st.sampled_from(["contiguous", "transposed", "strided"] if views else ["contiguous"]))
    whole = {"contiguous": shape, "transposed": shape[::-1], "strided": [2 * each for each in shape]}[kind]

    flat = torch.empty(math.prod(whole), dtype=getattr(torch, dtype))
    patterns = st.one_of(st.sampled_from(BIT_PATTERNS), st.binary(min_size=1, max_size=24))
    bits = draw(
        st.one_of(
            patterns.map(lambda pattern: np.resize(np.frombuffer(pattern, np.uint8), flat.nbytes).copy()),
            st.integers(0, 2**32).map(lambda seed: np.random.default_rng(seed).integers(0, 256, flat.nbytes, np.uint8)),
        )
    )
    if dtype == "bool":
        bits &= 1  # torch has no other booleans
    flat.view(torch.uint8).copy_(torch.from_numpy(bits))
    tensor = flat.reshape(whole)
    if kind == "transposed":
        return tensor.permute(tuple(reversed(range(len(shape)))))
    return tensor[tuple(slice(None, None, 2) for _ in shape)] if kind == "strided" else tensor


@st.composite
def state_dicts(draw: st.DrawFn, *, views: bool = True) -> State:
    """A state of up to five tensors, some of them tied."""
    state: State = {}
    for name in draw(st.lists(parameter_names(), unique=True, max_size=5)):
        tied_to = draw(st.integers(0, 9))
        state[name] = list(state.values())[tied_to] if tied_to < len(state) else draw(tensors(views=views))
    return state


def exact(state: State) -> list[tuple[str, torch.dtype, tuple[int, ...], bytes]]:
    """Everything that must come back, in order, computed without the code under test."""
    return [
        (name, tensor.dtype, tuple(tensor.shape), bits_of(tensor).numpy().tobytes()) for name, tensor in state.items()
    ]


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, in a copy."""
    return tensor.detach().clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)


def io_counter(name: str) -> int:
    """A count from /proc/self/io: `rchar` is every byte that this process asked a file for."""
    (line,) = [line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])


def layout_of(state: State) -> Layout:
    """The layout that a plan would have had for this state."""
    first: dict[int, str] = {}
    layout = []
    for name, tensor in state.items():
        owner = first.setdefault(id(tensor), name)
        dtype = str(tensor.dtype).removeprefix("torch.")
        layout.append(TensorLayout(name, tuple(tensor.shape), dtype, owner if owner != name else None))
    return tuple(layout)


@pytest.fixture
def state() -> State:
    """A small state with every dtype, several chunks, tied and odd tensors; no two tensors have the same values."""
    random = torch.Generator().manual_seed(1)
    found: State = {
        f"layer.{dtype}.weight": torch.randint(0, 2, (70, 3), generator=random).to(getattr(torch, dtype))
        for dtype in BYTES_PER_ELEMENT
    }
    found["embed"] = torch.randn((130, 66), generator=random).half()
    found["head"] = found["embed"]
    found["scalar"] = torch.randn((), generator=random).bfloat16()
    found["empty"] = torch.empty((0, 7))
    found["transposed"] = torch.randn((3, 65), generator=random).T
    found["zeros"] = torch.zeros(200)
    found["../a b"] = torch.randn(5, generator=random)
    return found


def zarr_arrays(suffix: str) -> Callable[[Path], dict[str, Any]]:
    """Read the arrays `a.b` and `c` of a directory with zarr-python."""

    def read(directory: Path) -> dict[str, Any]:
        import zarr

        return {name: zarr.open_array(directory / f"{name}{suffix}", mode="r")[:] for name in ("a.b", "c")}

    return read


def read_safetensors(directory: Path) -> dict[str, Any]:
    """Read a directory with safetensors, its index as transformers does."""
    from safetensors.torch import load_file

    index = directory / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    return {name: tensor for file in files for name, tensor in load_file(directory / file).items()}


def dcp_files(directory: Path) -> dict[str, Any]:
    """Read a directory with DCP's own converter, or its safetensors with safetensors."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    if (directory / "model.safetensors.index.json").exists():
        return read_safetensors(directory)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is unavailable", UserWarning)
        dcp_to_torch_save(directory, directory / "converted")
    found: dict[str, Any] = torch.load(directory / "converted", weights_only=True)
    return found


def ocdbt_arrays(directory: Path) -> dict[str, Any]:
    """Read the arrays `a.b` and `c` of a database with TensorStore."""
    import tensorstore as ts

    def read(name: str) -> Any:
        database = {"driver": "ocdbt", "base": f"file://{directory}/", "path": f"{name}/"}
        return ts.open({"driver": "zarr3", "kvstore": database}).result().read().result()

    return {name: read(name) for name in ("a.b", "c")}


def hdf5_file(directory: Path) -> dict[str, Any]:
    """Read the datasets of a file with h5py."""
    import h5py

    with h5py.File(directory / "state.h5") as file:
        return {name: dataset[()] for name, dataset in file.items()}


def orbax_tree(directory: Path) -> dict[str, Any]:
    """Read a tree with orbax."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        found: dict[str, Any] = checkpointer.restore(directory / "tree")["state"]
    return found


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "torch_save": lambda directory: torch.load(directory / "state.pth", weights_only=True),
    "safetensors_direct": read_safetensors,
    "safetensors_file": read_safetensors,
    "torch_dcp": dcp_files,
    "tensorstore_basic": zarr_arrays(".zarr"),
    "tensorstore_t5x": zarr_arrays(".zarr"),
    "tensorstore_t5x_real": zarr_arrays(".zarr"),
    "hdf5": hdf5_file,
    "orbax": orbax_tree,
    "fastsafetensors": read_safetensors,
    "zarr_python": zarr_arrays(""),
    "torch_checkpointing": lambda directory: torch.load(directory / "state_0.pt", weights_only=True),
    "tensorstore_ocdbt": ocdbt_arrays,
    "tensorstore_tuned": zarr_arrays(""),
}
"""How somebody else reads what a strategy wrote: nothing of this package in it."""


def skip_unless_installed(strategy: Strategy) -> None:
    """Skip a test of a strategy whose library is an extra that isn't installed here, and say which."""
    if strategy.extra != "peers":
        return
    for module in strategy.requires:
        try:
            importlib.import_module(module)
        except ImportError as error:
            why = f"{strategy.name} needs {module}, which isn't installed ({error}): pip install '.[peers]'"
            if os.environ.get("CKPT_REQUIRE_ALL"):
                pytest.fail(why)
            pytest.skip(why)


ORBAX_LEAVES_EARLY = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)
"""When one array can't be read, orbax closes its event loop while TensorStore still reads the others."""


class StrategyContract:
    """The tests that every strategy inherits; a subclass names the strategy and its options."""

    name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    exact_file_count: ClassVar[bool] = True
    """Whether `footprint` knows the number of files, rather than a bound."""
    unneeded: ClassVar[str] = "(?!)"
    """A pattern of the files that the library writes and may do without: losing one can go unnoticed."""

    @pytest.fixture
    def strategy(self) -> Strategy:
        """The strategy under test, with what it needs imported."""
        strategy = create(self.name, self.options)
        skip_unless_installed(strategy)
        strategy.prepare()
        return strategy

    @pytest.fixture
    def checkpoint(self, strategy: Strategy, state: State, tmp_path: Path) -> Path:
        """A checkpoint of `state`."""
        directory = tmp_path / "checkpoint"
        directory.mkdir()
        strategy.save(state, directory)
        return directory

    @PER_STRATEGY
    @given(drawn=state_dicts())
    def test_round_trip(self, strategy: Strategy, tmp_path: Path, drawn: State) -> None:
        """Names in their order, dtypes, shapes and every bit come back, and come back again after the first
        answer was overwritten; the source is left as it was. The save lists the files that it wrote, and no others.
        """
        before = exact(drawn)
        with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
            written = strategy.save(drawn, Path(directory))
            assert sorted(written) == sorted(path for path in Path(directory).rglob("*") if path.is_file())
            assert before == exact(drawn)
            loaded = strategy.load(Path(directory))
            assert before == exact(loaded)
            compare.poison(loaded)
            assert before == exact(strategy.load(Path(directory)))

    @PER_STRATEGY
    @given(drawn=state_dicts(views=False))
    def test_footprint_is_an_upper_bound(self, strategy: Strategy, tmp_path: Path, drawn: State) -> None:
        """No checkpoint has more files or bytes than planned for a state that owns its memory."""
        planned = strategy.footprint(Partition.single(layout_of(drawn)))
        with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
            strategy.save(drawn, Path(directory))
            found = listing.inventory(Path(directory))
        assert planned.file_count >= found.file_count
        assert planned.size_bytes >= found.apparent_bytes

    def test_footprint_counts_names(self, strategy: Strategy, tmp_path: Path) -> None:
        """Names take room, too, and beyond ASCII more than a byte for a letter."""
        drawn = {"😀" * 400 + str(number): torch.ones(1) for number in range(10)}
        strategy.save(drawn, tmp_path)
        assert (
            strategy.footprint(Partition.single(layout_of(drawn))).size_bytes
            >= listing.inventory(tmp_path).apparent_bytes
        )

    def test_footprint_counts_files(self, strategy: Strategy, state: State, checkpoint: Path) -> None:
        """The planned number of files is the number of files, chunks of zeros and tied tensors included."""
        if not self.exact_file_count:
            pytest.skip("this strategy's library decides about its files: the bound is tested, not the number")
        assert (
            strategy.footprint(Partition.single(layout_of(state))).file_count
            == listing.inventory(checkpoint).file_count
        )

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
    def test_every_value_of_a_narrow_float(self, strategy: Strategy, tmp_path: Path, dtype: str) -> None:
        """Each of the 65,536 (or 256) bit patterns survives, with and without NaNs in the tensor."""
        width = 8 * BYTES_PER_ELEMENT[dtype]
        every = torch.arange(2**width, dtype=torch.int32).to(torch.uint8 if width == 8 else torch.uint16)
        every = every.view(getattr(torch, dtype))
        patterns = {"every": every, "without NaN": every[~every.float().isnan()]}
        strategy.save(patterns, tmp_path)
        assert exact(patterns) == exact(strategy.load(tmp_path))

    def test_load_in_a_new_process(self, state: State, checkpoint: Path, fresh_python: Callable[..., str]) -> None:
        """What another process loads has the same digest: nothing depends on the process that saved."""
        code = (
            "import json, sys; from pathlib import Path; from ckpt import registry\n"
            "from ckpt.workload import building\n"
            "name, options, directory = sys.argv[1:]\n"
            "print(building.digest(registry.create(name, json.loads(options)).load(Path(directory))))"
        )
        found = fresh_python(code, self.name, json.dumps(self.options), str(checkpoint))
        assert building.digest(state) == found.strip()

    def test_loaded_tensors_own_their_memory(self, strategy: Strategy, state: State, checkpoint: Path) -> None:
        """Overwriting the files after a load changes nothing in memory: no lazy mapping is left."""
        loaded = strategy.load(checkpoint)
        for entry in listing.files_below(checkpoint):
            with Path(entry.path).open("r+b") as file:
                file.write(b"\xff" * entry.stat().st_size)
        assert exact(state) == exact(loaded)

    def test_nothing_outside_the_directory(
        self, strategy: Strategy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Names made of dots and slashes, absolute ones too, stay in the directory; nothing is left elsewhere."""
        for variable in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
            monkeypatch.setenv(variable, str(tmp_path))
        monkeypatch.setattr(tempfile, "tempdir", None)
        directory = tmp_path / "one" / "two" / "checkpoint"
        directory.mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "one")
        hostile = ["..", "../up", "../../up", "/", str(tmp_path / "absolute"), "\0", "a/../../b"]
        drawn = {name: torch.full((2,), number) for number, name in enumerate(hostile)}
        strategy.save(drawn, directory)
        assert exact(drawn) == exact(strategy.load(directory))
        outside = {path for path in tmp_path.rglob("*") if not path.is_relative_to(directory)}
        assert {tmp_path / "one", tmp_path / "one" / "two"} == outside

    def test_weird_directory(self, strategy: Strategy, state: State, weird_path: Path) -> None:
        """The directory's name may hold spaces, quotes, newlines and letters beyond ASCII."""
        strategy.save(state, weird_path)
        assert exact(state) == exact(strategy.load(weird_path))

    def test_relative_directory(
        self, strategy: Strategy, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A relative path means the same as the absolute one."""
        monkeypatch.chdir(tmp_path)
        Path("relative").mkdir()
        strategy.save(state, Path("relative"))
        assert exact(state) == exact(strategy.load(tmp_path / "relative"))

    def test_empty_directory(self, strategy: Strategy, tmp_path: Path) -> None:
        """A directory without a checkpoint is refused by name, and so is one that does not exist."""
        for directory in (tmp_path, tmp_path / "missing"):
            with pytest.raises(CheckpointError, match=re.escape(f"{directory} is no complete checkpoint")):
                strategy.load(directory)

    def test_damaged_checkpoint(self, strategy: Strategy, tmp_path: Path) -> None:
        """Whichever file is lost, emptied or cut in half, the load says where, and returns no wrong state."""
        whole, damaged = tmp_path / "whole", tmp_path / "damaged"
        whole.mkdir()
        saved = {"first.weight": torch.randn(70, 3).half(), "second": torch.zeros(5)}
        strategy.save(saved, whole)

        def damages() -> Iterator[str]:
            for entry in list(listing.files_below(whole)):
                for keep_bytes in (None, 0, entry.stat().st_size // 2):
                    shutil.rmtree(damaged, ignore_errors=True)
                    shutil.copytree(whole, damaged)
                    relative = Path(entry.path).relative_to(whole)
                    path = damaged / relative
                    if keep_bytes is None:
                        path.unlink()
                    else:
                        path.write_bytes(path.read_bytes()[:keep_bytes])
                    yield str(relative)

        for path in damages():
            try:
                loaded = strategy.load(damaged)
            except CheckpointError as error:
                assert str(damaged) in str(error)  # noqa: PT017  # an error isn't the only right answer
            else:
                assert re.fullmatch(self.unneeded, path), f"nothing was said about {path}"
                assert exact(saved) == exact(loaded)

    def test_part(self, strategy: Strategy, state: State, checkpoint: Path) -> None:
        """Tensors asked for by name come back, and no others, in the order of the state; or the strategy says that it
        has only the whole.
        """
        chosen = ["zeros", "head", "layer.bfloat16.weight"]
        if not strategy.capabilities.partial_load:
            with pytest.raises(CheckpointError, match="whole"):
                strategy.load(checkpoint, chosen)
            return
        part = strategy.load(checkpoint, chosen)
        assert exact({name: tensor for name, tensor in state.items() if name in chosen}) == exact(part)
        assert strategy.load(checkpoint, []) == {}
        with pytest.raises(CheckpointError, match=r"has no tensor 'nothing'.*inspect"):
            strategy.load(checkpoint, ["zeros", "nothing"])

    def test_part_is_read_alone(self, strategy: Strategy, tmp_path: Path) -> None:
        """A part is read without the rest: of ten equal tensors, one takes less than a third of the bytes."""
        if not strategy.capabilities.partial_load:
            pytest.skip("this strategy has only the whole: what it says when asked for a part is tested")
        strategy.save({str(number): torch.rand(512, 512) for number in range(10)}, tmp_path)
        strategy.load(tmp_path)  # whatever is read once, the first time

        def read_bytes(names: list[str] | None) -> int:
            before = io_counter("rchar")
            strategy.load(tmp_path, names)
            return io_counter("rchar") - before

        assert read_bytes(["7"]) < 10 * 2**20 / 3

    def test_checksum(self, strategy: Strategy, tmp_path: Path) -> None:
        """A flipped bit in the data is found by the load, or not, as the strategy says."""
        data = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (512, 512), np.uint8))  # incompressible
        strategy.save({"data": data}, tmp_path)
        largest = max(listing.files_below(tmp_path), key=lambda entry: entry.stat().st_size)
        with Path(largest.path).open("r+b") as file:
            file.seek(largest.stat().st_size // 2)
            (byte,) = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
        if strategy.capabilities.checksum is Checksum.VERIFIED:
            with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
                strategy.load(tmp_path)
        else:
            assert int((strategy.load(tmp_path)["data"] != data).sum()) == 1

    def test_other_readers(self, strategy: Strategy, tmp_path: Path) -> None:
        """Somebody else reads what it wrote, where it says so, and only there."""
        if strategy.describe().other_readers == "none":
            assert self.name not in READERS
            return
        written = {"a.b": torch.randn(130, 5), "c": torch.arange(7, dtype=torch.int32)}
        strategy.save(written, tmp_path)
        found = READERS[self.name](tmp_path)
        assert {name: tensor.tolist() for name, tensor in written.items()} == {
            name: np.asarray(found[name]).tolist() for name in written
        }

    def test_defaults_load_every_option(self, state: State, checkpoint: Path) -> None:
        """What some options saved, the default options load: nobody has to remember how."""
        default = create(self.name)  # its library is there: the fixture has looked
        default.prepare()
        assert exact(state) == exact(default.load(checkpoint))

    def test_failed_write(self, tmp_path: Path, fresh_python: Callable[..., str]) -> None:
        """A write that fails, as on a full disk, is an error to catch: neither silence nor a killed process."""
        skip_unless_installed(create(self.name, self.options))
        code = (
            "import json, resource, sys; from pathlib import Path; import torch; from ckpt import registry\n"
            "name, options, directory = sys.argv[1:]\n"
            "chosen = registry.create(name, json.loads(options))\n"
            "chosen.prepare()\n"
            "state = {str(number): torch.rand(512, 512) for number in range(4)}\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
            "try: chosen.save(state, Path(directory))\n"
            "except Exception as error: print('caught', type(error))\n"
        )
        assert fresh_python(code, self.name, json.dumps(self.options), str(tmp_path)).startswith("caught")

    def test_facts(self, strategy: Strategy) -> None:
        """A user finds one line about everything that the table of strategies shows."""
        for key, fact in strategy.facts().items():
            assert re.fullmatch(r"\S(.*\S)?", fact), key

    def test_facts_about_files(self, strategy: Strategy, checkpoint: Path) -> None:
        """A strategy that claims one file writes one file, and no other claims so."""
        assert (strategy.describe().files == "1") == (listing.inventory(checkpoint).file_count == 1)

    def test_label(self, strategy: Strategy) -> None:
        """The label is the name and the options that differ from the default: two strategies never share one."""
        changed = [f"{key}={value}" for key, value in self.options.items()]
        assert "+".join([self.name, *changed]) == strategy.label

    def test_unknown_option(self) -> None:
        """A misspelt option is an error that names the option and lists those there are."""
        with pytest.raises(UnknownStrategyError) as caught:
            create(self.name, {"no_such_option": 1})
        known = [field.name for field in fields(strategy_class(self.name))] or ["none"]
        assert "no_such_option" in str(caught.value)
        assert all(option in str(caught.value).partition("Its options: ")[2] for option in known)

    @pytest.mark.parametrize("options", [["a list"], "text", {1: 2}, {"": None}, {"name": "x"}, {"syncs_files": True}])
    def test_nonsense_options(self, options: Any) -> None:
        """Options of the wrong kind, and attributes that are no options, are refused."""
        with pytest.raises(UnknownStrategyError, match=f"strategy {self.name}: "):
            create(self.name, options)


class TestTorchSave(StrategyContract):
    """torch.save."""

    name = "torch_save"


class TestTorchSaveMapped(StrategyContract):
    """torch.save without checksums, loaded through a mapping, with anything that a pickle may hold."""

    name, options = "torch_save", {"crc": False, "mmap": True, "weights_only": False}


class TestSafetensorsFile(StrategyContract):
    """safetensors in one file."""

    name = "safetensors_file"


class TestSafetensorsFileShards(StrategyContract):
    """The same in shards, so small that the tests' tensors have many of them."""

    name, options = "safetensors_file", {"shard_mib": 1}

    @pytest.fixture(autouse=True)
    def _small_shards(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(safetensors_file, "_MIB", 300)


class TestTorchDcp(StrategyContract):
    """DCP's file system writer."""

    name = "torch_dcp"


class TestTorchDcpThreads(StrategyContract):
    """The same with two threads, and so two files."""

    name, options = "torch_dcp", {"thread_count": 2}


class TestTorchDcpFilePerTensor(StrategyContract):
    """The same with a file per tensor."""

    name, options = "torch_dcp", {"thread_count": 2, "single_file_per_rank": False}


class TestTorchDcpSafetensors(StrategyContract):
    """DCP's Hugging Face writer."""

    name, options = "torch_dcp", {"serialization": "safetensors"}


class TestTorchDcpSafetensorsFilePerTensor(StrategyContract):
    """The same with a file per tensor."""

    name = "torch_dcp"
    options: ClassVar = {"thread_count": 2, "single_file_per_rank": False, "serialization": "safetensors"}


class TestTensorstoreBasic(StrategyContract):
    """The basic TensorStore of the original OpenLLaMA-3B comparison."""

    name = "tensorstore_basic"


class TestTensorstoreBasicUncompressed(StrategyContract):
    """The same without a compressor."""

    name, options = "tensorstore_basic", {"compressor": "none"}


class TestTensorstoreT5x(StrategyContract):
    """The T5X TensorStore of the original OpenLLaMA-3B comparison."""

    name = "tensorstore_t5x"


class TestTensorstoreT5xManyChunks(StrategyContract):
    """The same with chunks so small that the tests' tensors have many of them."""

    name = "tensorstore_t5x"

    @pytest.fixture(autouse=True)
    def _small_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensorstore_t5x, "_TARGET_CHUNK_BYTES", 4000)


class TestSafetensorsDirect(StrategyContract):
    """Our safetensors."""

    name = "safetensors_direct"


class TestSafetensorsDirectSharded(StrategyContract):
    """The same in several files, each tensor in one, verified."""

    name, options = "safetensors_direct", {"shard_mib": 1, "verify": True, "threads": 1, "block_mib": 1}

    @pytest.fixture(autouse=True)
    def _small_shards(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shards = safetensors_files.shards
        monkeypatch.setattr(safetensors_files, "shards", lambda layouts, _: shards(layouts, 1000))


class TestSafetensorsDirectUnchecked(StrategyContract):
    """The same without checksums."""

    name, options = "safetensors_direct", {"checksum": False}


class TestTensorstoreTuned(StrategyContract):
    """TensorStore as it can be."""

    name = "tensorstore_tuned"


class TestTensorstoreTunedCompressed(StrategyContract):
    """The same, compressed, with checksums, in types that zarr-python has."""

    name, options = "tensorstore_tuned", {"compression": "zstd", "crc32c": True, "plain_types": True}


class TestTensorstoreTunedSharded(StrategyContract):
    """The same in shards, with chunks so small that the tests' tensors have many of them."""

    name, options = "tensorstore_tuned", {"shard_mib": 1, "chunk_mib": 1}

    @pytest.fixture(autouse=True)
    def _small_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        chunk_shape = tensorstore_tuned.chunk_shape
        monkeypatch.setattr(
            tensorstore_tuned, "chunk_shape", lambda shape, itemsize, _: chunk_shape(shape, itemsize, 400)
        )
        monkeypatch.setattr(tensorstore_tuned, "MIB", 1000)


class TestTensorstoreT5xReal(StrategyContract):
    """TensorStore as T5X really uses it."""

    name = "tensorstore_t5x_real"


class TestTensorstoreT5xRealManyChunks(StrategyContract):
    """The same in the state's own dtypes, with chunks so small that the tests' tensors have many of them."""

    name, options = "tensorstore_t5x_real", {"dtype": "native"}

    @pytest.fixture(autouse=True)
    def _small_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensorstore_t5x_real, "_TARGET_CHUNK_BYTES", 4000)


class TestTensorstoreOcdbt(StrategyContract):
    """TensorStore's database."""

    name = "tensorstore_ocdbt"
    exact_file_count = False


class TestTensorstoreOcdbtManyFiles(StrategyContract):
    """The same with files so small that the tests' tensors need many of them."""

    name, options = "tensorstore_ocdbt", {"target_file_mib": 1}
    exact_file_count = False

    @pytest.fixture(autouse=True)
    def _small_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensorstore_ocdbt, "MIB", 4000)


class TestHdf5(StrategyContract):
    """HDF5 with contiguous datasets."""

    name = "hdf5"


class TestHdf5Chunked(StrategyContract):
    """The same in chunks, so small that the tests' tensors have many of them."""

    name, options = "hdf5", {"layout": "chunked", "chunk_mib": 1}

    @pytest.fixture(autouse=True)
    def _small_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hdf5, "MIB", 4000)


@ORBAX_LEAVES_EARLY
class TestOrbax(StrategyContract):
    """Orbax with its defaults."""

    name = "orbax"
    exact_file_count = False
    unneeded = r"tree/(_CHECKPOINT_METADATA|_METADATA|commit_success\.txt|ocdbt\.process_0/.*)"


@ORBAX_LEAVES_EARLY
class TestOrbaxPlain(StrategyContract):
    """Orbax with a directory per array, and without a compressor."""

    name, options = "orbax", {"ocdbt": False, "compression": False}
    exact_file_count = False
    unneeded = r"tree/(_CHECKPOINT_METADATA|_METADATA|commit_success\.txt)"


class TestZarrPython(StrategyContract):
    """zarr-python with its defaults."""

    name = "zarr_python"


class TestZarrPythonUncompressed(StrategyContract):
    """The same without a compressor, in chunks so small that the tests' tensors have many of them."""

    name, options = "zarr_python", {"compression": "none"}

    @pytest.fixture(autouse=True)
    def _small_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(zarr_python, "MIB", 60)


class TestFastsafetensors(StrategyContract):
    """safetensors in one file, read by fastsafetensors."""

    name = "fastsafetensors"


class TestTorchCheckpointing(StrategyContract):
    """Meta's torch_checkpointing."""

    name = "torch_checkpointing"


class TestTorchCheckpointingUnmapped(StrategyContract):
    """The same without its mapping on load."""

    name, options = "torch_checkpointing", {"mmap": False}


def test_every_strategy_has_a_contract() -> None:
    """No strategy, and no value of an option that is a choice, goes untested."""
    covered = [(each.name, each.options) for each in StrategyContract.__subclasses__()]
    for name in names():
        tested = [options for strategy, options in covered if strategy == name]
        assert tested, f"add a subclass of StrategyContract for {name}"
        cls = strategy_class(name)
        kinds = get_type_hints(cls)
        for field in fields(cls):
            values = {options.get(field.name, field.default) for options in tested}
            choices = {False, True} if kinds[field.name] is bool else set(get_args(kinds[field.name]))
            assert choices <= values, f"add subclasses of StrategyContract for {name} with {field.name}"


@pytest.mark.parametrize("name", ["", "torch-save", "TorchSave", "_zarr_per_parameter", "../torch_save", None, 1])
def test_unknown_strategy(name: Any) -> None:
    """An unknown name, and a module that is no strategy, is an error that lists the strategies."""
    with pytest.raises(UnknownStrategyError, match=", ".join(names())):
        create(name)


@pytest.mark.parametrize(("name", "options"), [("hdf5", {"chunk_mib": 4})])
def test_contradictions(name: str, options: dict[str, Any]) -> None:
    """Options that make no sense together are refused, with what to do."""
    with pytest.raises(ContradictionError, match=r"leave .* out"):
        create(name, options)


@pytest.mark.parametrize("value", ["gzip", "", None, 0, True, ["none"]])
def test_unknown_value_of_an_option(value: Any) -> None:
    """A value that an option doesn't have is an error that lists the values."""
    with pytest.raises(UnknownStrategyError, match=r"compressor = .*'default' or 'none'"):
        create("tensorstore_basic", {"compressor": value})
