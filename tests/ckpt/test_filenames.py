"""Parameter names as file names: no two collide, none leaves its directory, every one can be read back."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ckpt.formats.filenames import to_filename

NAMES = st.one_of(
    st.text(st.characters(exclude_categories=())),  # lone surrogates, too
    st.text("._-~%/\\ aA0é\0", max_size=6),  # what an escape might mix up
    st.text("a.", min_size=175, max_size=300),  # where names begin to be cut
    st.integers(1, 400).map(lambda length: "é" * length),
)


@given(NAMES)
@example("")
@example(".")
@example("..")
@example("/etc/passwd")
def test_safe(name: str) -> None:
    """A file name is one path component of plain letters and escapes, not hidden, with room for a suffix in 255
    bytes.
    """
    filename = to_filename(name)
    escaped = r"(?!\.)([A-Za-z0-9_.-]|%[0-9A-F]{2})+"
    cut = rf"{escaped}(%[0-9A-F]?)?%~[0-9a-f]{{64}}"
    assert re.fullmatch(f"%|{escaped}|{cut}", filename)
    assert len(filename + ".zarr") <= 255


def from_filename(filename: str) -> str | None:
    """The parameter name that `to_filename` was given, or None where it was cut."""
    if re.search("%~[0-9a-f]{64}$", filename):
        return None
    return "" if filename == "%" else unquote_to_bytes(filename).decode("utf-8", "surrogatepass")


@given(NAMES)
@example("\ud83d\ude00")  # two surrogates that would make one character
def test_reversible(name: str) -> None:
    """The name can be read back, unless it was too long: then the answer is None, never a wrong name."""
    found = from_filename(to_filename(name))
    assert found == name or (found is None and len(to_filename(name)) == 180)


@given(NAMES, NAMES)
@example("", "%")
@example("a.b", "a_b")
@example("a/b", "a%2Fb")
@example("x" * 300, "x" * 301)
@example("x" * 300, to_filename("x" * 300))
@example("\ud83d\ude00", "\U0001f600")
@example(".a", "%2Ea")
def test_injective(one: str, other: str) -> None:
    """Two names never share a file."""
    assume(one != other)
    assert to_filename(one) != to_filename(other)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "lm_head.weight", "a-b", "x" * 180])
def test_usual_names_stay_readable(name: str) -> None:
    """What models really call their parameters is left as it is."""
    assert name == to_filename(name)
