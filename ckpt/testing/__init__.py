"""The tests that every strategy must pass, for a strategy of your own: needs pytest and hypothesis.

A test module is a subclass with the strategy's name, and one per set of options that changes what it writes:

    from ckpt.testing import StrategyContract

    class TestMyStrategy(StrategyContract):
        name = "my_strategy"

    class TestMyStrategyCompressed(StrategyContract):
        name, options = "my_strategy", {"compression": True}

A strategy that no entry point names is created by a fixture instead:

    class TestMyStrategy(StrategyContract):
        @pytest.fixture
        def strategy(self):
            return MyStrategy()
"""

import pytest

pytest.register_assert_rewrite("ckpt.testing.contract", "ckpt.testing.in_place")

from ckpt.testing.contract import StrategyContract  # noqa: E402  # pytest has to know first

__all__ = ["StrategyContract"]
