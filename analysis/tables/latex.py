"""Writes tables as LaTeX: whatever a log holds is text, never a command."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator

from analysis.tables.table import (
    MISSING,
    Cell,
    Marked,
    Number,
    Outcomes,
    Table,
    numbered,
    pieces,
    printable,
    shown,
    shown_examples,
    turn,
)

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "`": r"\textasciigrave{}", '"': "''", "[": "{[}", "]": "{]}",
    "×": r"\ensuremath{\times}", "µ": r"\ensuremath{\mu}", "·": r"\ensuremath{\cdot}",
    "–": r"\textendash{}", "—": r"\textemdash{}",
    "’": "'", "‘": "`", "“": "``", "”": "''", "…": r"\dots{}",
}  # fmt: skip
"""The characters that LaTeX reads as commands; a bracket could begin an option."""

_ACCENTS = "\u0300\u0301\u0302\u0303\u0308"
_END_OF_LATIN = 0x180

_TURNED_CM = 3
"""The width of the columns of a table that was turned: long texts take several lines there."""

LATEX_PACKAGES = ("booktabs", "graphicx", "siunitx")


def latex(table: Table) -> str:
    r"""Write a table as a LaTeX float, for a document that loads `LATEX_PACKAGES`; a wide one is shrunk to the line.

    Columns of plain numbers are siunitx's S columns; every other number is an argument of `\num`. Examples come behind
    the float, for they may take pages.
    """
    turned = table.turned
    table = turn(table) if turned else table
    columns = range(len(table.headings))
    plain = [bool(table.rows) and all(isinstance(row[column], Number) for row in table.rows) for column in columns]
    words = f"p{{{_TURNED_CM}cm}}" if turned else "l"
    layout = "".join(
        _s_column([row[column] for row in table.rows]) if plain[column] else words if table.holds_words(column) else "r"
        for column in columns
    )
    headings = [f"{{{in_latex(heading)}}}" for heading in table.headings]
    rows = [[_latex_cell(cell, bare=plain[column]) for column, cell in enumerate(row)] for row in table.rows]
    below = [rf"\par\noindent {in_latex(note)}" for note in numbered(table)]
    return "\n".join(
        [
            rf"% \usepackage{{{','.join(LATEX_PACKAGES)}}}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{in_latex(table.title)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{layout}}}",
            r"\toprule",
            " & ".join(headings) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\par\smallskip\footnotesize\raggedright",
            *below,
            r"\end{table}",
            *_examples(table),
            "",
        ]
    )


def _examples(table: Table) -> Iterator[str]:
    if table.examples:
        yield r"{\raggedright"
        for example in shown_examples(table):
            yield rf"\par\medskip\noindent\textbf{{{in_latex(example.subject)}}}\\"
            yield rf"{in_latex(example.text)}\par\noindent"
            yield rf"\texttt{{{in_latex(example.command)}}}"
        yield r"\par}"


def _s_column(cells: list[Cell]) -> str:
    texts = [shown(cell) for cell in cells]
    whole = max((len(text.partition(".")[0].lstrip("-")) for text in texts), default=1)
    decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
    sign = "-" if any(text.startswith("-") and text != MISSING for text in texts) else ""
    return f"S[table-format={sign}{max(1, whole)}.{decimals}]"


def _latex_cell(cell: Cell, *, bare: bool) -> str:
    if isinstance(cell, str):
        return in_latex(cell)
    if isinstance(cell, Marked | Outcomes):
        return in_latex(cell.text) + "".join(rf"\textsuperscript{{[{number}]}}" for number in cell.notes)
    if bare and isinstance(cell, Number):
        return f"{{{MISSING}}}" if math.isnan(cell.value) else shown(cell)
    return "".join(rf"\num{{{text}}}" if number else in_latex(text, strip=False) for text, number in pieces(cell))


def in_latex(text: str, *, strip: bool = True) -> str:
    """Return a text that LaTeX prints as it is; letters that its standard fonts lack are named by their code point."""
    written = "".join(_latex_character(character) for character in (printable(text) if strip else text))
    return re.sub("-(?=-)", "-{}", written)  # two dashes would become one


def _latex_character(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    # Latin letters with one accent are in every font; the rest of Unicode would stop pdflatex.
    base, *accents = list(unicodedata.normalize("NFD", character))
    accented = base.isascii() and base.isalpha() and len(accents) == 1 and accents[0] in _ACCENTS
    if character.isascii() or (accented and ord(character) < _END_OF_LATIN):
        return character
    return f"{{[}}U+{ord(character):04X}{{]}}"
