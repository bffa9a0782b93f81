"""Turns a figure into SVG for an HTML page: with unique ids, the page's colour for text, and a description in words."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET

from markupsafe import Markup

from analysis.figures.axes import INK
from analysis.figures.figures import Drawn, save
from analysis.tables.table import printable

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"


def inline(drawn: Drawn, prefix: str) -> Markup:
    """Return the `<svg>` element; `prefix` makes its ids different from those of the page's other figures."""
    file = io.BytesIO()
    save(drawn, "svg", file)
    root = ET.fromstring(file.getvalue())  # noqa: S314  # what matplotlib wrote just now
    for parent in list(root.iter()):
        for child in list(parent):
            # The style sheet would apply to the whole page, which has another; metadata is for files.
            if child.tag in {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"}:
                parent.remove(child)
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            element.set(name, _changed(name, value, prefix))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", printable(drawn.alt))
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704  # serialised, hence escaped, by ElementTree


def _changed(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name in {"href", f"{{{_XLINK}}}href"}:
        return re.sub(r"^#", f"#{prefix}-", value)
    return re.sub(r"url\(#", f"url(#{prefix}-", value).replace(INK, "currentColor")
