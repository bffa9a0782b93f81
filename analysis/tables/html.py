"""Writes tables as HTML: whatever a log holds is text, never markup."""

from __future__ import annotations

import re

import jinja2
from markupsafe import Markup, escape

from analysis.tables.table import MISSING, Cell, Marked, Outcomes, Table, printable, shown, shown_examples

_OPTION = re.compile(r"(?<=\S)\+(?=[^\W\d]\w*=)")
"""Where a method's name, such as `torch_save+crc=False`, goes on with an option."""


def _with_breaks(text: str) -> Markup:
    """Escape a text, and let a line break before the options of a method's name, and not in the middle of a word."""
    return Markup("<wbr/>+").join(escape(part) for part in _OPTION.split(text))


_environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_environment.filters["soft"] = _with_breaks
_HTML = _environment.from_string("""\
<figure class="table {{ name }}" id="{{ anchor }}">
<div class="scroll" role="region" tabindex="0" aria-label="{{ title }}">
<table>
<caption>{{ title }}</caption>
<thead>
<tr>{% for heading, kind in headings %}<th scope="col" class="{{ kind }}">{{ heading | soft }}</th>{% endfor %}</tr>
</thead>
<tbody>
{% for row in rows %}
<tr>
{%- for text, kind, marks in row %}
{% set tag = "th" if loop.first else "td" %}
<{{ tag }}{% if loop.first %} scope="row"{% endif %} class="{{ kind }}">{{ text | soft }}
{%- for mark in marks %} <sup><a href="#{{ anchor }}-{{ mark }}">[{{ mark }}]</a></sup>{% endfor %}</{{ tag }}>
{%- endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if footnotes or notes or examples %}
<figcaption>
{% if footnotes %}
<ol>
{% for note in footnotes %}
<li id="{{ anchor }}-{{ loop.index }}">{{ note }}</li>
{% endfor %}
</ol>
{% endif %}
{% if notes %}
<ul>
{% for note in notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{% endif %}
{% if examples %}
<dl>
{% for example in examples %}
<dt>{{ example.subject | soft }}</dt>
<dd>{{ example.text }}</dd>
<dd><code>{{ example.command | soft }}</code></dd>
{% endfor %}
</dl>
{% endif %}
</figcaption>
{% endif %}
</figure>
""")


def html(table: Table, anchor: str) -> Markup:
    """Write a table as an HTML figure; `anchor` is its id, which no other element of the page may have."""

    def cell(content: Cell, kind: str) -> tuple[str, str, tuple[int, ...]]:
        if isinstance(content, Marked):
            return printable(content.text), kind if content.text == MISSING else "text", content.notes
        if isinstance(content, Outcomes):
            return content.text, f"text {content.of.verdict}".rstrip(), content.notes
        return shown(content), "text" if isinstance(content, str) else "number", ()

    kinds = ["text" if table.holds_words(column) else "number" for column in range(len(table.headings))]
    return Markup(  # noqa: S704  # escaped by the template
        _HTML.render(
            anchor=anchor,
            name=table.name,
            title=printable(table.title),
            headings=list(zip(map(printable, table.headings), kinds, strict=True)),
            rows=[list(map(cell, row, kinds)) for row in table.rows],
            footnotes=[printable(note) for note in table.footnotes],
            notes=[printable(note) for note in table.notes],
            examples=shown_examples(table),
        )
    )
