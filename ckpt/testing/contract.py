"""What every strategy must do, whatever its format."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings

from ckpt.disk import listing
from ckpt.errors import CheckpointError
from ckpt.registry import create
from ckpt.state import compare
from ckpt.state.dtypes import BYTES_PER_ELEMENT, torch_dtype
from ckpt.state.layout import State, layout_of_state
from ckpt.state.sharding import Partition
from ckpt.strategy import OPTIONAL, Checksum, Footprint, Strategy
from ckpt.testing import processes
from ckpt.testing.in_place import InPlaceContract
from ckpt.testing.reads import bytes_asked_for, stripe_bytes
from ckpt.testing.states import contiguous_by_name_only, every_dtype, exact, state_dicts
from ckpt.workload import building

PER_STRATEGY = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[
        HealthCheck.differing_executors,  # one test runs under several classes
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],
)

EXPECTED_ERRORS = {"ckpt.errors.CheckpointError", "builtins.OSError", "builtins.RuntimeError", "builtins.ValueError"}
"""What may be raised where a disk is full: torch and TensorStore have no classes of their own. `ckpt.save` raises the
first for all of them."""

WEIRD_NAMES = ["a space", "a 'quote' and \"two\"", "a\nnewline", "semi;colon & $HOME", "Ünïcode ✓"]


def skip_unless_installed(strategy: Strategy) -> None:
    """Skip a test of a strategy whose optional library is missing; fail it where CKPT_REQUIRE_ALL is set."""
    if strategy.extra != OPTIONAL:
        return
    for module in strategy.requires:
        try:
            importlib.import_module(module)
        except ImportError as error:
            reason = f"{strategy.name} needs {module}, which isn't installed ({error}): pip install '.[{OPTIONAL}]'"
            if os.environ.get("CKPT_REQUIRE_ALL"):
                pytest.fail(reason)
            pytest.skip(reason)


def footprint_of(strategy: Strategy, state: State) -> Footprint:
    """The footprint of a state that a single process writes."""
    return strategy.footprint(Partition.single(layout_of_state(state)))


class StrategyContract(InPlaceContract):
    """The tests that every strategy inherits; a subclass names the strategy and its options."""

    name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    exact_file_count: ClassVar[bool] = True
    """Whether `footprint` knows the number of files, rather than a bound."""
    unneeded: ClassVar[str] = "(?!)"
    """A pattern of files that the library writes and can do without: their loss may go unnoticed."""

    @pytest.fixture
    def strategy(self) -> Strategy:
        """The strategy under test, with its libraries imported."""
        strategy = create(self.name, self.options)
        skip_unless_installed(strategy)
        strategy.prepare()
        return strategy

    @pytest.fixture
    def state(self) -> State:
        """A small state with every dtype."""
        return every_dtype()

    @pytest.fixture
    def checkpoint(self, strategy: Strategy, state: State, tmp_path: Path) -> Path:
        """A checkpoint of `state`."""
        directory = tmp_path / "checkpoint"
        directory.mkdir()
        strategy.save(state, directory)
        return directory

    @PER_STRATEGY
    @given(drawn=state_dicts())
    @example(drawn=contiguous_by_name_only())
    def test_round_trip(self, strategy: Strategy, tmp_path: Path, drawn: State) -> None:
        """Names in their order, dtypes, shapes and every bit come back, and the save lists exactly its files.

        They come back again after the first result was overwritten; the source is left as it was.
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
        planned = footprint_of(strategy, drawn)
        with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
            strategy.save(drawn, Path(directory))
            usage = listing.inventory(Path(directory))
        assert planned.file_count >= usage.file_count
        assert planned.size_bytes >= usage.apparent_bytes

    def test_footprint_counts_names(self, strategy: Strategy, tmp_path: Path) -> None:
        """The planned size includes the names, with more than a byte for a letter beyond ASCII."""
        drawn = {"😀" * 400 + str(number): torch.ones(1) for number in range(10)}
        strategy.save(drawn, tmp_path)
        assert footprint_of(strategy, drawn).size_bytes >= listing.inventory(tmp_path).apparent_bytes

    def test_footprint_counts_files(self, strategy: Strategy, state: State, checkpoint: Path) -> None:
        """The planned number of files is the number of files, chunks of zeros and tied tensors included."""
        if not self.exact_file_count:
            pytest.skip("this strategy's library decides about its files: the bound is tested, not the number")
        assert footprint_of(strategy, state).file_count == listing.inventory(checkpoint).file_count

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
    def test_every_value_of_a_narrow_float(self, strategy: Strategy, tmp_path: Path, dtype: str) -> None:
        """Each of the 65,536 (or 256) bit patterns survives, with and without NaNs in the tensor."""
        width = 8 * BYTES_PER_ELEMENT[dtype]
        every = torch.arange(2**width, dtype=torch.int32).to(torch.uint8 if width == 8 else torch.uint16)
        every = every.view(torch_dtype(dtype))
        patterns = {"every": every, "without NaN": every[~every.float().isnan()]}
        strategy.save(patterns, tmp_path)
        assert exact(patterns) == exact(strategy.load(tmp_path))

    def test_load_in_a_new_process(self, strategy: Strategy, state: State, checkpoint: Path) -> None:
        """What another process loads has the same digest: nothing depends on the process that saved."""
        assert building.digest(state) == processes.in_a_new_process(processes.digest_of, strategy, checkpoint)

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

    @pytest.mark.parametrize("directory_name", WEIRD_NAMES)
    def test_weird_directory(self, strategy: Strategy, state: State, directory_name: str, tmp_path: Path) -> None:
        """The directory's name may hold spaces, quotes, newlines and letters beyond ASCII."""
        directory = tmp_path / directory_name
        directory.mkdir()
        strategy.save(state, directory)
        assert exact(state) == exact(strategy.load(directory))

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
        """Whichever file is lost, emptied or cut in half, the load's error names it, or the state is right."""
        whole, damaged = tmp_path / "whole", tmp_path / "damaged"
        whole.mkdir()
        saved = {"first.weight": torch.randn(70, 3).half(), "second": torch.zeros(5)}
        strategy.save(saved, whole)
        for path in _damages(whole, damaged):
            try:
                loaded = strategy.load(damaged)
            except CheckpointError as error:
                assert str(damaged) in str(error)  # noqa: PT017  # an error isn't the only right outcome
            else:
                assert re.fullmatch(self.unneeded, path), f"no error for {path}"
                assert exact(saved) == exact(loaded)

    def test_part(self, strategy: Strategy, state: State, checkpoint: Path) -> None:
        """Tensors asked for by name come back, and no others, in the order of the state.

        A strategy without partial load raises an error that says so.
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
            pytest.skip("this strategy reads only the whole: its error for a part is tested")
        rows = max(512, 4 * stripe_bytes(tmp_path) // 2048)  # of 2 KiB; Python and libraries read ahead by stripes
        strategy.save({str(number): torch.rand(rows, 512) for number in range(10)}, tmp_path)
        strategy.load(tmp_path)  # whatever is read once, the first time
        before = bytes_asked_for()
        strategy.load(tmp_path, ["7"])
        assert bytes_asked_for() - before < 10 * rows * 2048 / 3

    def test_checksum(self, strategy: Strategy, tmp_path: Path) -> None:
        """The load finds a flipped bit in the data if the strategy verifies checksums, and only then."""
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

    def test_defaults_load_every_option(self, strategy: Strategy, state: State, checkpoint: Path) -> None:
        """The default options load what any options saved: nobody has to remember them."""
        default = type(strategy)()
        default.prepare()
        assert exact(state) == exact(default.load(checkpoint))

    def test_failed_write(self, strategy: Strategy, tmp_path: Path) -> None:
        """A write that fails, as on a full disk, raises an error of the library or of ours, and kills no process."""
        error = processes.in_a_new_process(processes.error_of_a_full_disk, strategy, tmp_path)
        assert error is not None, "nothing was raised"
        root = error.partition(".")[0]
        assert error in EXPECTED_ERRORS or root in {module.partition(".")[0] for module in strategy.requires}

    def test_facts(self, strategy: Strategy) -> None:
        """The table of strategies has one line for everything that it shows."""
        for key, fact in strategy.facts().items():
            assert re.fullmatch(r"\S(.*\S)?", fact), key

    def test_facts_about_files(self, strategy: Strategy, checkpoint: Path) -> None:
        """A strategy that is described as writing one file writes one file, and no other is described so.

        What the description has in parentheses holds for large states on some filesystems.
        """
        usual = strategy.describe().files.partition(" (")[0]
        assert (usual == "1") == (listing.inventory(checkpoint).file_count == 1)


def _damages(whole: Path, damaged: Path) -> Iterator[str]:
    """Copy a checkpoint with one file at a time lost, emptied or cut in half; yields the file's relative path."""
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
