"""Strategies by name: this package's, and those that other installed packages add by entry points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckpt import registry
from ckpt.errors import UnknownStrategyError
from ckpt.registry import create, create_all, names, strategy_class

MODULE = """
from dataclasses import dataclass
from typing import ClassVar
from ckpt.strategies.torch_save import TorchSave

@dataclass(frozen=True)
class Mine(TorchSave):
    name: ClassVar[str] = "{name}"
    level: int = 1
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package with a module and an entry point for a strategy of some name."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(package: str, name: str, source: str = MODULE, target: str = "Mine") -> None:
        (tmp_path / f"{package}.py").write_text(source.replace("{name}", name))
        information = tmp_path / f"{package}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {package}:{target}\n")

    registry._entry_points.cache_clear()
    yield install
    registry._entry_points.cache_clear()


def test_every_name_has_a_class_of_that_name() -> None:
    """The class of each strategy, and of the self-test's, which isn't listed, has its name."""
    assert [strategy_class(name).name for name in names()] == names()
    assert registry.SELFTEST == strategy_class(registry.SELFTEST).name
    assert registry.SELFTEST not in names()


def test_a_strategy_of_another_package(install: Install) -> None:
    """An entry point adds a strategy: it is listed, created with its options, and named in its label."""
    install("others_a", "mine_a")
    assert "mine_a" in names()
    assert create("mine_a", {"level": 2}).label == "mine_a+level=2"
    with pytest.raises(UnknownStrategyError, match=r"strategy mine_a: .*Its options: .*level \(int\)"):
        create("mine_a", {"depth": 2})
    assert "others_a" in create("mine_a").installed_by


def test_an_unknown_name(install: Install) -> None:
    """The error lists the names that exist, other packages' included."""
    install("others_b", "mine_b")
    with pytest.raises(UnknownStrategyError, match=r"no strategy 'mine'; there are .*mine_b.*torch_save"):
        create("mine")


def test_a_package_that_cannot_be_imported(install: Install) -> None:
    """It is listed, and using it is an error with the package and the reason; other strategies still work."""
    install("others_c", "mine_c", "import no_such_module")
    assert "mine_c" in names()
    with pytest.raises(UnknownStrategyError, match=r"'mine_c' of others_c 1\.0 can't be imported.*no_such_module"):
        create("mine_c")
    created, problems = create_all()
    assert [strategy.name for strategy in created] == [name for name in names() if name != "mine_c"]
    assert ["mine_c" in problem for problem in problems] == [True]


@pytest.mark.parametrize(
    ("source", "target"),
    [("Mine = 1", "Mine"), ("class Mine: name = '{name}'", "Mine"), (MODULE.replace("{name}", "other"), "Mine")],
    ids=["no class", "no strategy", "another name"],
)
def test_an_entry_point_to_something_else(install: Install, source: str, target: str) -> None:
    """What isn't a strategy of the entry point's name is refused, with what is expected."""
    package = f"others_d{abs(hash(source))}"
    install(package, "mine_d", source, target)
    with pytest.raises(UnknownStrategyError, match=r"can't be used: .* has name = 'mine_d'"):
        create("mine_d")


def test_a_name_that_is_taken(install: Install) -> None:
    """A name that this package, or two others, have is refused, with the packages; it depends on no order."""
    install("others_e", "torch_save")
    install("others_f", "mine_f")
    install("others_g", "mine_f")
    with pytest.raises(UnknownStrategyError, match=r"'torch_save' is in several .*: ckpt-study, others_e 1\.0\."):
        create("torch_save")
    with pytest.raises(UnknownStrategyError, match=r"'mine_f' is in several installed packages: others_. 1\.0, others"):
        create("mine_f")
