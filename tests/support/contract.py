"""The contract of strategies, as the classes of this package's own strategies inherit it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt.strategy import Strategy
from ckpt.testing import StrategyContract
from support.other_readers import READERS

ORBAX_LEAVES_EARLY = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)
"""When one array can't be read, orbax closes its event loop while TensorStore still reads the others."""


class Contract(StrategyContract):
    """The contract, and the programs that read the files, of a strategy of this package."""

    def test_other_readers(self, strategy: Strategy, tmp_path: Path) -> None:
        """Another program reads the files if the strategy's description names one, and only then."""
        if strategy.describe().other_readers == "none":
            assert self.name not in READERS
            return
        written = {"a.b": torch.randn(130, 5), "c": torch.arange(7, dtype=torch.int32)}
        strategy.save(written, tmp_path)
        read = READERS[self.name](tmp_path)
        assert {name: tensor.tolist() for name, tensor in written.items()} == {
            name: np.asarray(read[name]).tolist() for name in written
        }
