"""What is loaded is what was saved, bit for bit, or an error names the tensor that isn't: for every strategy."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import ckpt
from ckpt.disk import listing
from ckpt.errors import CheckpointError
from ckpt.state.compare import first_difference

SEED = 20261126


def some_state() -> dict[str, Any]:
    """Tensors of several sizes and dtypes, two of them one, and plain values."""
    generator = torch.Generator().manual_seed(SEED)
    weight = torch.randn(64, 33, generator=generator)
    return {
        "model": {"w": weight.bfloat16(), "head": weight, "tied": weight, "empty": torch.empty(0, 3)},
        "mask": torch.rand(100, generator=generator) > 0.5,
        "step": 7,
        "betas": [0.9, 0.999],
        "names": ["a", "b"],
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two such states are the same, bit for bit."""
    tensors = [{**state["model"], "mask": state["mask"]} for state in (one, other)]
    plain = [{key: value for key, value in state.items() if key not in {"model", "mask"}} for state in (one, other)]
    return first_difference(*tensors) is None and plain[0] == plain[1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax leaves tasks where a load fails
def test_flipped_bits(strategy: str, tmp_path: Path) -> None:
    """Whichever bit of whichever file is flipped, a load gives what was saved, or one error."""
    state = some_state()
    final = tmp_path / "final"
    ckpt.save(state, final, strategy)
    files = sorted(Path(entry.path) for entry in listing.files_below(final))
    dice = random.Random(SEED)
    detected = 0
    for _ in range(40):
        file = dice.choices(files, [path.stat().st_size for path in files])[0]
        content = bytearray(file.read_bytes())
        place = dice.randrange(len(content))
        content[place] ^= 1 << dice.randrange(8)
        original = file.read_bytes()
        file.write_bytes(content)
        try:
            assert same(state, ckpt.load(final)), f"a flipped bit at {place} of {file.name} was loaded"
        except CheckpointError:
            detected += 1
        file.write_bytes(original)
    assert same(state, ckpt.load(final))
    assert detected > 5


def test_a_flipped_bit_is_loaded_on_request(tmp_path: Path) -> None:
    """Without verification there is no second look: who asks for that gets what lies there."""
    final = tmp_path / "final"
    ckpt.save({"w": torch.zeros(5000)}, final, "hdf5")
    content = bytearray((final / "state.h5").read_bytes())
    content[-8000] ^= 1
    (final / "state.h5").write_bytes(content)
    with pytest.raises(CheckpointError, match="tensor 'w' is not what was saved"):
        ckpt.load(final)
    with pytest.raises(CheckpointError, match="tensor 'w' is not what was saved"):
        ckpt.load(final, ["w"])
    assert int((ckpt.load(final, verify=False)["w"] != 0).sum()) == 1


def test_one_bit_in_every_byte_of_the_manifest(tmp_path: Path) -> None:
    """No flipped bit in `checkpoint.json` changes what is loaded."""
    state = some_state()
    final = tmp_path / "final"
    ckpt.save(state, final, "torch_save")
    path = final / "checkpoint.json"
    original = path.read_bytes()
    dice = random.Random(SEED)
    accepted = 0
    for place in range(len(original)):
        content = bytearray(original)
        content[place] ^= 1 << dice.randrange(8)
        path.write_bytes(content)
        try:
            assert same(state, ckpt.load(final)), f"a flipped bit at {place} was loaded"
            accepted += 1
        except CheckpointError:
            pass
    assert accepted < len(original) / 10  # spaces of JSON


@pytest.mark.parametrize("content", [b"", b"\0" * 500, b"{", b"[1, 2"])
def test_a_manifest_that_is_no_json(content: bytes, tmp_path: Path) -> None:
    """A torn `checkpoint.json` is damage, and never a checkpoint of another program, which has no plain values."""
    ckpt.save(some_state(), tmp_path / "final")
    (tmp_path / "final" / "checkpoint.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json is damaged"):
        ckpt.load(tmp_path / "final")


@pytest.mark.parametrize("content", [{}, {"version": 1, "format": "mine"}, [1], "text"])
def test_another_programs_file_of_that_name(content: Any, tmp_path: Path) -> None:
    """A `checkpoint.json` of another program says nothing of a checkpoint that it lies beside."""
    torch.save({"w": torch.ones(3)}, tmp_path / "state.pth")
    (tmp_path / "checkpoint.json").write_text(json.dumps(content))
    assert torch.equal(torch.ones(3), ckpt.load(tmp_path)["w"])


@pytest.mark.parametrize("name", ["torch_save", "safetensors_tuned"])
def test_checkpoints_without_checksums(name: str, tmp_path: Path) -> None:
    """A checkpoint of the first version, which has no checksums in its manifest, still loads; what its strategy's own
    format has is compared.
    """
    final = tmp_path / "final"
    ckpt.save(some_state(), final, name)
    path = final / "checkpoint.json"
    content = json.loads(path.read_text())
    del content["xxh3_64"]
    content["version"] = 1
    for tensor in content["tensors"].values():
        del tensor["xxh3_64"]
    path.write_text(json.dumps(content))
    assert same(some_state(), ckpt.load(final))
    if name == "safetensors_tuned":
        file = final / "model.safetensors"
        damaged = bytearray(file.read_bytes())
        damaged[-1] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            ckpt.load(final)
