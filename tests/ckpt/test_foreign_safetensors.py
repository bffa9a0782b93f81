"""safetensors of other programs: metadata that happen to have our keys, and indexes that disagree with their files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckpt
from ckpt import CheckpointError, CheckpointWarning
from ckpt.formats import safetensors_files, safetensors_header
from ckpt.registry import create
from ckpt.strategies.safetensors_file import SafetensorsFile
from ckpt.strategies.safetensors_tuned import SafetensorsTuned

STRATEGIES = ["safetensors_tuned", "safetensors_file"]


@pytest.mark.parametrize(
    "metadata",
    [
        {"names": "cat,dog", "tied": "no", "pairs": "w", "xxh3_64": "x", "rows_of_whole": "all", "ckpt": "yes"},
        {"names": '{"w": "cat"}'},
        {"tied": '{"v": ["w", 1]}'},
        {"pairs": '["w"]'},
        {"xxh3_64": '{"w": "0000000000000000"}'},
        {"rows_of_whole": '{"w": [0, 100]}'},
        {"ckpt": '{"names": {"a": "b"}}'},
    ],
)
@pytest.mark.parametrize("strategy", ["", *STRATEGIES])
def test_metadata_with_our_keys(tmp_path: Path, metadata: dict[str, str], strategy: str) -> None:
    """Another program's metadata rename nothing, join nothing and damage nothing, whatever stands in them."""
    tensor = torch.arange(4.0).double().reshape(2, 2)
    save_file({"w": tensor}, tmp_path / "model.safetensors", {"format": "pt"} | metadata)
    loaded = create(strategy).load(tmp_path) if strategy else ckpt.load(tmp_path)
    assert ["w"] == list(loaded)
    assert torch.equal(tensor, loaded["w"])
    assert loaded["w"].dtype == torch.float64


def header(path: Path) -> dict[str, Any]:
    """A file's header."""
    content = path.read_bytes()
    found: dict[str, Any] = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    return found


STATE = {
    "%": torch.arange(2000.0),
    "c": torch.ones(3, dtype=torch.complex128),
    "b": torch.ones(5).bfloat16(),
    "i": torch.arange(1024, dtype=torch.int32),
}
STATE["t"] = STATE["%"]


@pytest.mark.parametrize("checksum", [True, False])
def test_files_from_before_the_key(tmp_path: Path, checksum: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of ours from before it had a key of its own is known by the rest: names, pairs, ties, checksums count."""
    monkeypatch.setattr(safetensors_header, "DATA_OFFSET", 0)  # where the data of such files begins in a page
    SafetensorsTuned(checksum=checksum).save(STATE, tmp_path)
    path = tmp_path / "model.safetensors"
    assert header(path)["__metadata__"]["ckpt.format"] == "1"
    old = header(path)
    del old["__metadata__"]["ckpt.format"], old["__metadata__"]["order"]
    text = json.dumps(old, separators=(",", ":")).encode()
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    path.write_bytes(content[:8] + text.ljust(length) + content[8 + length :])
    loaded = SafetensorsTuned(verify=checksum).load(tmp_path)
    assert list(STATE) == list(loaded)
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in STATE.items())
    assert loaded["t"] is loaded["%"]
    if checksum:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="XXH3 differs"):
            SafetensorsTuned(verify=True).load(tmp_path)


def test_our_key_makes_the_others_strict(tmp_path: Path) -> None:
    """In a file that says it is ours nonsense under our keys is damage, and another version is named."""
    SafetensorsTuned().save({"w": torch.ones(3)}, tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"xxh3_64":"{', b'"xxh3_64":"['))
    with pytest.raises(CheckpointError, match="damaged"):
        SafetensorsTuned().load(tmp_path)
    path.write_bytes(whole.replace(b'"ckpt.format":"1"', b'"ckpt.format":"2"'))
    with pytest.raises(CheckpointError, match="it has version '2' of our metadata, and 1 is known here"):
        SafetensorsTuned().load(tmp_path)


def sharded(directory: Path, weight_map: dict[str, str], **files: list[str]) -> Path:
    """A directory with an index, and files that have these tensors."""
    directory.mkdir()
    (directory / safetensors_files.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    for file, names in files.items():
        tensors = {name: torch.full((2,), float(number)) for number, name in enumerate(names)}
        save_file(tensors, directory / f"{file}.safetensors", {"format": "pt"})
    return directory


ONE, TWO = "one.safetensors", "two.safetensors"


@pytest.mark.parametrize("strategy", ["", *STRATEGIES])
def test_an_index_that_disagrees(tmp_path: Path, strategy: str) -> None:
    """A tensor that its file hasn't, or that two files have, and a file that is missing, are one message each."""

    def load(directory: Path) -> Any:
        return create(strategy).load(directory) if strategy else ckpt.load(directory)

    with pytest.raises(CheckpointError, match=r"'b'.*one.safetensors|one.safetensors lacks tensor 'b'"):
        load(sharded(tmp_path / "lacks", {"a": ONE, "b": ONE}, one=["a"]))
    with pytest.raises(CheckpointError, match=r"tensor 'a' is in (both )?one.safetensors and (in )?two.safetensors"):
        load(sharded(tmp_path / "twice", {"a": ONE, "b": TWO}, one=["a"], two=["b", "a"]))
    with pytest.raises(CheckpointError, match=r"two.safetensors"):
        load(sharded(tmp_path / "file", {"a": ONE, "b": TWO}, one=["a"]))


def test_what_the_index_leaves_out(tmp_path: Path) -> None:
    """A tensor in a file that the index names is loaded, though the index leaves the tensor out; an index without
    metadata is one; a file that it doesn't name is left, and told.
    """
    directory = sharded(tmp_path / "c", {"a": ONE, "b": TWO}, one=["a", "more"], two=["b"], other=["x"])
    with pytest.warns(CheckpointWarning, match="not loaded: other.safetensors"):
        assert ["a", "more", "b"] == list(ckpt.load(directory))
    assert {"a", "more", "b"} == set(SafetensorsFile().load(directory))


def test_other_safetensors_beside_the_model(tmp_path: Path) -> None:
    """`model.safetensors` is the model, whatever else lies beside it; shards without an index are no checkpoint."""
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "consolidated.safetensors")
    with pytest.warns(CheckpointWarning, match="not loaded: consolidated.safetensors"):
        assert torch.equal(torch.ones(2), ckpt.load(tmp_path)["w"])
    save_file({"v": torch.zeros(2)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="no complete checkpoint: it has 3 safetensors files and no"):
        ckpt.load(tmp_path)


def test_a_part_is_not_the_whole(tmp_path: Path, together: Any) -> None:
    """A file that holds rows of tensors is not loaded as if they were the tensors."""
    together.save(SafetensorsTuned(), tmp_path, together.partition("dim0", 2))
    with pytest.raises(CheckpointError, match="holds some rows of tensor"):
        ckpt.load(tmp_path / "model-00001-of-00002.safetensors")
