"""What the `device` of a log's storage says: the devices below a target as JSON, each with those `below` it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

_DEEPEST = 32


def parsed(device: object) -> list[dict[str, Any]]:
    """The devices that a target lies on; empty where they are unknown, or written in a form that isn't ours.

    Earlier logs have one JSON object, of the disk itself.
    """
    try:
        content = json.loads(device) if isinstance(device, str) else None
    except (ValueError, RecursionError):
        return []
    if isinstance(content, dict):
        content = [content | {"kind": "disk"}]
    return _devices(content, 0)


def _devices(content: object, depth: int) -> list[dict[str, Any]]:
    if not isinstance(content, list) or depth > _DEEPEST:
        return []
    named = (item for item in content if isinstance(item, dict) and isinstance(item.get("name"), str))
    return [item | {"below": _devices(item.get("below"), depth + 1)} for item in named]


def disks(devices: Collection[Mapping[str, Any]]) -> frozenset[str]:
    """The names of the disks at the bottom."""
    return frozenset(device["name"] for device in _all(devices) if device.get("kind") == "disk")


def _all(devices: Collection[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for device in devices:
        yield device
        yield from _all(device["below"])


def in_common(below: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """Find what several targets lie on: a disk or volume -> its targets, in their order.

    Args:
        below: target -> the disks or volumes that it lies on.
    """
    names = dict.fromkeys(what for of_target in below.values() for what in of_target)
    sharing = {name: [target for target, its in below.items() if name in its] for name in names}
    return {name: targets for name, targets in sorted(sharing.items()) if len(targets) > 1}
