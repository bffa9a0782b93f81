"""What may be compared: jobs that differ in anything but strategy and target aren't set side by side silently."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from analysis.logs import columns
from analysis.logs.frames import frames
from analysis.logs.load import entries, load_results
from analysis.measures.operation import Operation
from analysis.measures.setting import settings
from support.logs import amended
from support.notes import noted
from support.studies import MakeStudy, Show


def on_machine(path: Path, **provenance: Any) -> None:
    """Write other facts about the machine into a log."""
    amended(path, lambda log: log.provenance.update(provenance))


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"packages": '{"torch": "2.6"}'}, "the package versions"),
        ({"cpu": "another CPU"}, "the kind of node"),
        ({"memory_bytes": 2**40}, "the kind of node"),
    ],
)
def test_other_circumstances_split_the_table(facts: dict[str, Any], told: str, make_study: MakeStudy) -> None:
    """Two tables instead of one, and each says what sets it apart; planned jobs without a log stay visible."""
    study = make_study(strategies=["torch_save", "tensorstore_basic", "tensorstore_t5x"])
    for label in ("torch_save", "tensorstore_basic"):
        on_machine(study.log(label, save=[1.0], cold=[1.0], warm=[1.0], gib=[1.0]), packages="{}", cpu="CPU")
    on_machine(study.paths.log(study.job("tensorstore_basic").id), **facts)

    found = settings(load_results(study.root))

    assert len(found) == 2
    assert all(told in comparison.apart for comparison in found)
    assert {"torch_save", "tensorstore_basic", "tensorstore_t5x"} == {m.label for c in found for m in c.methods}
    assert [1, 2] == sorted(len(comparison.methods) for comparison in found)


def test_equal_circumstances_do_not_split(make_study: MakeStudy) -> None:
    """Another host of the same kind is the same kind of node."""
    study = make_study(strategies=["torch_save", "tensorstore_basic"])
    for label in ("torch_save", "tensorstore_basic"):
        on_machine(study.log(label, save=[1.0], cold=[1.0]), packages="{}", cpu="CPU", host=f"node of {label}")

    (found,) = settings(load_results(study.root))

    assert found.apart == ""


def test_unproven_loads_have_a_column_of_their_own(make_study: MakeStudy, show: Show) -> None:
    """They are neither mixed with proven ones nor dropped."""
    study = make_study(strategies=["torch_save"])
    study.log("torch_save", save=[1.0] * 2, cold=[3.0, 5.0], unproven={1: 0.5})

    text = show(study.root, "text")

    assert "load, cold unproven [s]" in text
    assert "3.00, n = 1" in text
    assert "5.00, n = 1" in text


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The bytes after one of the accidents that happen to files."""
    start, length = chance.randrange(len(content)), chance.randrange(1, 2000)
    accident = chance.randrange(5)
    if accident == 0:
        return content[:start]
    if accident == 1:
        return content[:start] + bytes(length) + content[start + length :]
    if accident == 2:
        return content[:start] + chance.randbytes(length) + content[start:]
    if accident == 3:
        return content[:start] + content[start + length :]
    flipped = bytearray(content)
    for _ in range(chance.randrange(1, 20)):
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
    return bytes(flipped)


@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_damaged_logs_crash_nothing(seed: int, make_study: MakeStudy) -> None:
    """Each is one clear line, and the rest of the study is compared all the same."""
    study = make_study(strategies=["torch_save", "tensorstore_basic"])
    study.log("torch_save", save=[2.0], cold=[1.0])
    path = study.log("tensorstore_basic", save=[4.0], cold=[1.0])
    content, chance = path.read_bytes(), random.Random(seed)

    for number in range(100):
        with noted(f"seed {seed}, accident {number}"):
            path.write_bytes(damaged(content, chance))
            broken, good = entries(study.root)
            assert (broken.log is None) or (repr(broken.log) == repr(columns.read(path)))
            assert good.log is not None
            if broken.log is None:
                assert broken.status == "unreadable"
                assert len(broken.error.splitlines()) == 1
    (found,) = settings(frames(entries(study.root)))
    assert found.method("torch_save")[Operation.SAVE].median_s == 2.0


def test_a_flipped_bit_in_a_sample_is_noticed(make_study: MakeStudy) -> None:
    """Not only HDF5's own structure is protected, but every number."""
    study = make_study(strategies=["torch_save"])
    path = study.log("torch_save", save=[2.0], cold=[1.0])
    content = bytearray(path.read_bytes())
    place = content.index(b"\x00\x00\x00\x00\x00\x00\x00\x40")  # 2.0, the save's duration
    content[place] ^= 1
    path.write_bytes(content)

    (entry,) = entries(study.root)

    assert entry.status == "unreadable"
    assert "damaged" in entry.error
