"""The generated page of the Python API, and what docstrings say of a class's fields."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from docstring_parser import parse


def api() -> str:
    """Every public name of the packages, with its signature and what its docstring says."""
    parts = []
    for room in ("ckpt", "ckpt.dcp", "analysis"):
        module = importlib.import_module(room)
        parts.append(f"## `{room}`\n\n{_summary(module)}\n")
        for name in module.__all__:
            value = getattr(module, name)
            parts.append(_public(f"{room}.{name}", value))
            parts += [_public(f"{name}.{method}", member) for method, member in _methods(value)]
    parts.append(_public("ckpt.checkpoint.Inspection", importlib.import_module("ckpt.checkpoint").Inspection))
    parts.append(_public("ckpt.in_place.Filled", importlib.import_module("ckpt.in_place").Filled))
    return "\n".join(parts)


def _methods(value: Any) -> Iterator[tuple[str, Any]]:
    """The public methods of a class that holds no data."""
    if inspect.isclass(value) and not is_dataclass(value) and not issubclass(value, BaseException):
        for name, member in vars(value).items():
            if inspect.isfunction(member) and not name.startswith("_"):
                yield name, member


def _summary(module: Any) -> str:
    return sentence((inspect.getdoc(module) or "").split("\n\n")[0])


def _public(name: str, value: Any) -> str:
    about = parse(inspect.getdoc(value) or "")
    lines = [f"### `{name}`", ""]
    if not inspect.isclass(value) or any(_methods(value)):
        lines += ["```text", f"{name}{_signature(value)}", "```", ""]
    lines += [sentence(about.short_description), ""]
    for paragraph in (inspect.getdoc(value) or "").split("\n\n")[1:]:
        if paragraph.startswith(("Args:", "Attributes:", "Returns:", "Raises:")):
            break
        lines.append(_paragraph(paragraph))
    lines += [f"- `{entry.arg_name}`: {sentence(entry.description)}" for entry in about.params]
    if is_dataclass(value) and isinstance(value, type) and not about.params:
        lines += [f"- `{field}`: {meaning}" for field, _, meaning in attributes(value)]
    if about.returns:
        lines += ["", f"Returns: {sentence(about.returns.description)}"]
    lines += [
        line for entry in about.raises for line in ("", f"Raises `{entry.type_name}`: {sentence(entry.description)}")
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _paragraph(text: str) -> str:
    """A docstring's paragraph; an indented one is code."""
    return f"```text\n{inspect.cleandoc(text)}\n```\n" if text.startswith("    ") else f"{sentence(text)}\n"


class _Annotation(str):
    """An annotation that is shown without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _signature(value: Callable[..., Any]) -> str:
    signature = inspect.signature(value)
    parameters = [
        parameter.replace(annotation=_Annotation(parameter.annotation))
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    returns = signature.return_annotation
    if returns is not inspect.Signature.empty:
        returns = _Annotation(returns)
    text = str(signature.replace(parameters=parameters, return_annotation=returns))
    if len(text) < 90:
        return text
    star = [parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters]
    lines = [str(parameter) for parameter in parameters]
    if True in star:
        lines.insert(star.index(True), "*")
    return "(\n" + "".join(f"    {line},\n" for line in lines) + text[text.rindex(")") :]


def attributes(cls: type) -> Iterator[tuple[str, str, str]]:
    """The fields of a class, with the docstring that follows created."""
    source = inspect.getsource(cls)
    for field in fields(cls):
        match = re.search(rf'^    {field.name}: .*\n    """([^"]*(?:"[^"]+)*)"""', source, re.MULTILINE)
        yield field.name, str(field.type), sentence(match[1]) if match else field.name.replace("_", " ")


def sentence(text: str | None) -> str:
    """A text as a sentence's beginning, on one line, with the docstring's code kept as it is."""
    return " ".join((text or "").split())
