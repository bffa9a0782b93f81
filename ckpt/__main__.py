"""`python -m ckpt`: what the strategies are and do."""

from __future__ import annotations

from dataclasses import fields

from cyclopts import App
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ckpt import strategy
from ckpt.cli import run
from ckpt.errors import CheckpointError

app = App(name="python -m ckpt", help="How a model's state is written and read back.", version_flags=[])


@app.command(name="strategies")
def show_strategies() -> None:
    """Print the strategies side by side: what each writes, how, and what it is for."""
    created = [strategy.create(name) for name in strategy.names()]
    table = Table(show_lines=True)
    table.add_column("")
    for each in created:
        table.add_column(each.label, overflow="fold")
    for field in fields(strategy.Facts):
        cells = [Text(getattr(each.facts, field.name)) for each in created]
        table.add_row(field.name.replace("_", " "), *cells)
    options = [Text("\n".join(f"{k} = {v}" for k, v in each.options.items()) or "none") for each in created]
    table.add_row("options", *options)
    Console().print(table)


if __name__ == "__main__":
    run(app, CheckpointError)
