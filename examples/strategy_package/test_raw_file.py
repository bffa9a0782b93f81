"""The strategy under the tests that every strategy must pass: `python -m pytest`, with ckpt-study and hypothesis."""

from ckpt.testing import StrategyContract


class TestRawFile(StrategyContract):
    """With its defaults; each set of options that changes what is written deserves a class of its own."""

    name = "raw_file"
