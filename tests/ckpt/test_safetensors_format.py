"""The safetensors format: what our files look like to others, and what damaged ones are met with."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ckpt.errors import CheckpointError
from ckpt.formats import safetensors_header, safetensors_plan
from ckpt.formats.safetensors_header import assign_offsets
from ckpt.formats.safetensors_metadata import TensorInfo
from ckpt.state.dtypes import BYTES_PER_ELEMENT
from ckpt.state.layout import TensorLayout
from ckpt.state.sharding import Shard
from ckpt.strategies.safetensors_tuned import SafetensorsTuned

layouts = st.lists(
    st.builds(
        TensorLayout,
        st.text(),
        st.lists(st.sampled_from([0, 1, 3, 64, 2048]), max_size=2).map(tuple),
        st.sampled_from(sorted(BYTES_PER_ELEMENT)),
    ),
    unique_by=lambda layout: layout.name,
    max_size=6,
)


@given(layouts)
def test_offsets(state: list[TensorLayout]) -> None:
    """The data has no hole; a tensor of whole pages begins at a page, any other at a multiple of its elements' size."""
    tensors = assign_offsets([TensorInfo(layout) for layout in state])
    end = 0
    for info in sorted(tensors, key=lambda info: (info.start, info.end)):
        assert info.start == end
        assert info.start % BYTES_PER_ELEMENT[info.layout.dtype] == 0
        assert info.layout.size_bytes % 4096 or info.start % 4096 == 0
        end = info.end


@given(layouts, st.booleans())
def test_headers_are_read_back(state: list[TensorLayout], checked: bool) -> None:
    """What the header says, the order too, is what was written; the data begins at a page; no checksum's value
    changes its length.
    """
    tensors = assign_offsets(
        [
            TensorInfo(
                layout,
                index=3 * number,
                rows=(number, 9**number) if number % 2 else None,
                is_pair=layout.dtype == "complex128",
                checksum=f"{number:016x}" * checked,
            )
            for number, layout in enumerate(state)
        ]
    )
    tied = {f"tied to {tensors[0].layout.name}": (tensors[0].layout.name, 1)} if tensors else {}
    head = safetensors_header.header_bytes(tensors, tied)
    size_bytes = len(head) + sum(layout.size_bytes for layout in state)
    header = safetensors_header.parse(head, size_bytes, "file")
    assert (tensors, tied, len(head)) == (header.tensors, dict(header.tied), header.data_start)
    assert header.is_ours
    assert header.is_aligned
    assert len(head) % 4096 == 64


def test_others_read_all_of_it(tmp_path: Path) -> None:
    """safetensors reads every tensor, and the checksums as texts in the metadata."""
    state = {f"layer.{number}": torch.randn(number, 700) for number in range(5)}
    SafetensorsTuned().save(state, tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, found[name]) for name, tensor in state.items())
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        metadata = opened.metadata()
    assert metadata["format"] == "pt"
    assert set(state) == set(json.loads(metadata["xxh3_64"]))


@pytest.mark.parametrize("names", [None, ["b"]])
def test_we_read_others(names: list[str] | None, tmp_path: Path) -> None:
    """A file whose data begins anywhere, and whose tensors lie at odd places, is read too, whole and in part."""
    state = {"a": torch.arange(3, dtype=torch.int8), "b": torch.randn(1000, 3).double(), "c": torch.randn(7).bfloat16()}
    save_file(state, tmp_path / "any name.safetensors")
    loaded = SafetensorsTuned().load(tmp_path, names)
    assert set(names or state) == set(loaded)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def whole(tmp_path: Path) -> bytes:
    """A good file."""
    SafetensorsTuned().save({"a": torch.ones(3), "b": torch.ones(5, 5).half()}, tmp_path)
    return (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"F32"', b'"F99"'),
        (b'"F32"', b'"F64"'),
        (b'"shape":[3]', b'"shape":[4]'),
        (b'"shape":[3]', b'"shape":null'),
        (b'"shape":[5,5]', b'"shape":[-5,-5]'),
        (b"[0,12]", b"[4,16]"),
        (b"[12,62]", b"[11,61]"),
        (b'"a":{', b'"a":['),
        (b"{", b"\xff"),
    ],
)  # fmt: skip
def test_headers_that_lie(old: bytes, new: bytes, tmp_path: Path) -> None:
    """A header that contradicts itself, or its file, is refused by the file's name."""
    content = whole(tmp_path)
    changed = content.replace(old, new, 1)
    if changed == content:  # the place of a tensor depends on its size: find it
        pytest.fail(f"{old!r} is not in the header: {content[8:400]!r}")
    (tmp_path / "model.safetensors").write_bytes(changed[: len(content)])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        SafetensorsTuned().load(tmp_path)


@given(data=st.data())
def test_damage_anywhere_in_the_header(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever bytes stand where the header was, the load ends with one message or a state, never with a crash."""
    directory = tmp_path_factory.mktemp("damaged")
    content = bytearray(whole(directory))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 300))] = data.draw(st.integers(0, 255))
    (directory / "model.safetensors").write_bytes(content)
    with contextlib.suppress(CheckpointError):
        SafetensorsTuned().load(directory)


@pytest.mark.parametrize("length", [0, 1, 2**63, 2**64 - 1, 10**9])
def test_impossible_lengths(length: int, tmp_path: Path) -> None:
    """A header that can't be that long is not allocated."""
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointError, match="damaged"):
        SafetensorsTuned().load(tmp_path)


def test_an_index_that_leads_away(tmp_path: Path) -> None:
    """A file outside the directory is not opened, whatever the index says."""
    whole(tmp_path)
    (tmp_path / "in").mkdir()
    index = {"weight_map": {"a": "../model.safetensors"}}
    (tmp_path / "in" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names a file outside its directory"):
        SafetensorsTuned().load(tmp_path / "in")


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(0, 100))
def test_shards(sizes: list[int], most: int) -> None:
    """Every tensor is in one file; those of a file are in order, and no larger than they may be, but for a lone one."""
    state = [Shard(TensorLayout(str(number), (size,), "int8"), 0, size) for number, size in enumerate(sizes)]
    files = safetensors_plan.split(state, most)
    assert sorted(map(state.index, (shard for file in files for shard in file))) == list(range(len(state)))
    assert all(file == sorted(file, key=state.index) for file in files)
    assert all(sum(shard.layout.size_bytes for shard in file) <= most or len(file) == 1 for file in files if most)
    assert len(files) == 1 or most
