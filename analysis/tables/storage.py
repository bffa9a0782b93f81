"""Makes the tables of what the targets are: filesystem, servers, layout, devices, ceilings, rates of small files."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.logs.claims import PROVEN
from analysis.measures.setting import Setting
from analysis.measures.storage import UNKNOWN_FACT, Storage
from analysis.measures.storage_caveats import reason
from analysis.tables.table import MISSING, Cell, Marked, Number, Table

_USUAL_OPTIONS = re.compile(
    r"rw|relatime|noatime|nodiratime|nosuid|nodev|noexec|seclabel|user_id=.*|group_id=.*|default_permissions|"
    r"allow_other|subvolid=.*|subvol=/|uuid=on|inode64|attr2|logbufs=8|logbsize=32k|noquota|lowerdir=.*|upperdir=.*|"
    r"workdir=.*|space_cache=v2|resuid=.*|resgid=.*|addr=.*|clientaddr=.*|mountaddr=.*|max_read=131072"
)
"""Mount options that hardly change how fast or how safe a filesystem is, or that other columns show."""

_OPERATIONS = ("create", "stat", "read", "unlink", "mkdir", "rmdir")

_CEILING_HEADINGS = (
    "direct write [GB/s]", "buffered write [GB/s]", "direct read [GB/s]", "buffered read [GB/s]",
)  # fmt: skip

_HOW_MEASURED = (
    "rates in GB/s (GB = 10^9 bytes) are ceilings: what the target did by itself in the studied jobs, past the page "
    "cache and through it, writes until they were synced"
)
_HOW_SMALL_FILES = (
    "small files per second: create writes each and syncs none; of all ranks together, from the first start to the "
    "last end, each in a directory of its own"
)

_HOW_COMMANDS = (
    "commands of the study: `prepare` before a job's trials, `between` after each save and before its loads; none is "
    "part of a measured time; exit code 124: took too long and was stopped, 127: could not be started"
)


def storage_tables(settings: Sequence[Setting]) -> list[Table]:
    """Return, per study, the tables of what its targets lie on, of their small files, and of the study's commands.

    The last two are left out where there is nothing to show.
    """
    tables = []
    for study, members in itertools.groupby(settings, key=lambda setting: setting.study):
        group = list(members)
        others = (_small_files_table(study, group), _commands_table(study, group))
        tables += [_facts_table(study, _at_largest_scale(group)), *(table for table in others if table.rows)]
    return tables


def _at_largest_scale(settings: Sequence[Setting]) -> list[Setting]:
    """Choose one setting per target, in their order: what it lies on is the same at every scale."""
    largest: dict[str, Setting] = {}
    for setting in settings:
        known = largest.setdefault(setting.target, setting)
        if setting.ranks > known.ranks or (setting.ranks == known.ranks and known.apart and not setting.apart):
            largest[setting.target] = setting
    return list(largest.values())


def _facts_table(study: str, settings: Sequence[Setting]) -> Table:
    footnotes: list[str] = []
    headings = (
        "target", "filesystem", "servers", "mount options", "layout", "device", "capacity, used", *_CEILING_HEADINGS,
        "create / stat / unlink per s", "not proven here",
    )  # fmt: skip
    rows = tuple(_facts(setting, footnotes) for setting in settings)
    scales = sorted({setting.scale for setting in settings if setting.storage.ceilings})
    notes = [f"{_HOW_MEASURED}; at {' or '.join(scales)} (nodes x tasks)"] if scales else []
    return Table("storage", f"Storage: {study}", headings, rows, tuple(notes), tuple(footnotes), turned=True)


def _facts(setting: Setting, footnotes: list[str]) -> tuple[Cell, ...]:
    storage = setting.storage

    def marked(text: str, *notes: str) -> Cell:
        footnotes.extend(note for note in dict.fromkeys(notes) if note not in footnotes)
        return Marked(text, tuple(footnotes.index(note) + 1 for note in notes)) if notes else text

    def fact(text: str) -> Cell:
        if not text:
            return "unknown"
        return marked("unknown", reason(text)) if text.startswith(UNKNOWN_FACT) else text

    ignored = ("direct I/O was asked for, and went through the page cache",) if storage.ignored_direct else ()
    doubts = {name: why for name, key in (("durability", "durability_proof"), ("cold loads", "cold_proof"))
              if (why := storage.fact(key)) not in {"", PROVEN}}  # fmt: skip
    examined = {storage.fact("durability_proof"), storage.fact("cold_proof")} == {PROVEN}
    guarantee = storage.fact("fsync_guarantee")
    promises = (
        (f"fsync on {storage.fact('filesystem')}: {guarantee}",)
        if _is_known(guarantee) and "durability" in doubts
        else ()
    )
    small = next(iter(storage.small_files.values()), {})
    return (
        setting.target,
        _filesystem(storage),
        fact(_servers(storage)),
        _options(storage),
        fact(_layout(storage)),
        _device(storage),
        _capacity(storage),
        *(
            marked(MISSING, *ignored)
            if direct and direction in storage.ignored_direct
            else Number(storage.ceilings.get((direction, direct), math.nan), 3)
            for direction in ("write", "read")
            for direct in (True, False)
        ),
        " / ".join(_rate(small.get(name, math.nan)) for name in ("create", "stat", "unlink")) if small else MISSING,
        marked(", ".join(doubts), *(f"{name}: {why}" for name, why in doubts.items()), *promises)
        if doubts
        else ("nothing" if examined else "unknown"),
    )


def _is_known(fact: str) -> bool:
    return bool(fact) and not fact.startswith(UNKNOWN_FACT)


def _rate(per_s: float) -> str:
    return MISSING if math.isnan(per_s) else f"{per_s:,.0f}"


def _filesystem(storage: Storage) -> str:
    version = storage.fact("filesystem_version")
    return (storage.fact("filesystem") or "unknown") + (f", {version}" if _is_known(version) else "")


def _servers(storage: Storage) -> str:
    """Return the servers; of logs that lack them, the mount's source."""
    servers, source = storage.fact("servers"), storage.fact("source")
    if servers.startswith("none"):
        return "none, local"
    if not servers or (servers.startswith(UNKNOWN_FACT) and source):
        return source
    return servers


def _options(storage: Storage) -> str:
    options = [option for option in storage.fact("options").split(",") if not _USUAL_OPTIONS.fullmatch(option)]
    return ", ".join(filter(None, options)) or MISSING


def _layout(storage: Storage) -> str:
    """Return how the directory lays out new files, and how a written file lies there."""
    layout, written = storage.fact("layout"), storage.fact("written_layout")
    if not written or written.startswith(UNKNOWN_FACT) or written == layout:
        return layout
    if not layout or layout.startswith(UNKNOWN_FACT):
        return f"a written file: {written}"
    return f"{layout}; a written file: {written}"


def _device(storage: Storage) -> str:
    if storage.fact("device").startswith("memory"):
        return storage.fact("device")
    names = ", ".join(_chain(device) for device in storage.devices)
    return names or ("on servers" if _is_remote(storage) else "unknown")


def _is_remote(storage: Storage) -> bool:
    servers = storage.fact("servers")
    return storage.is_fuse or bool(servers and not servers.startswith("none") and not servers.startswith(UNKNOWN_FACT))


def _chain(device: Mapping[str, Any]) -> str:
    """Name a device and what it lies on: `loop0 (image on ext4, direct I/O) on vda`."""
    about = []
    if device.get("image"):
        about = [f"image on {device.get('image_filesystem', 'an unknown filesystem')}"]
        about.append("direct I/O" if device.get("direct_io") else "through the page cache below")
    model = str(device.get("model", ""))
    if _is_known(model):  # of virtual disks, which have none, the kernel assumes that they rotate
        about.append(model)
        if device.get("kind") == "disk" and str(device.get("rotational")) == "1":
            about.append("rotating")
    name = str(device["name"]) + (f" ({', '.join(about)})" if about else "")
    below = ", ".join(_chain(lower) for lower in device["below"])
    return f"{name} on {below}" if below else name


def _capacity(storage: Storage) -> str:
    if math.isnan(storage.capacity_bytes):
        return "unknown"
    used = "" if math.isnan(storage.used_fraction) else f", {storage.used_fraction:.0%} used"
    return f"{_bytes(storage.capacity_bytes)}{used}"


def _bytes(count: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e9:.3g} GB"


def _small_files_table(study: str, settings: Sequence[Setting]) -> Table:
    rows = tuple(_small_files_rows(settings))
    headings = ("target", "scale", "ranks", *(f"{operation} / s" for operation in _OPERATIONS))
    return Table("small_files", f"Small files on the targets of {study}", headings, rows, (_HOW_SMALL_FILES,))


def _small_files_rows(settings: Sequence[Setting]) -> Iterator[tuple[Cell, ...]]:
    for setting in settings:
        for ranks, rates in setting.storage.small_files.items():
            per_s = (Number(rates.get(operation, math.nan), 0) for operation in _OPERATIONS)
            yield (setting.target, setting.scale, Number(ranks, 0), *per_s)


def _commands_table(study: str, settings: Sequence[Setting]) -> Table:
    rows = tuple(_commands_rows(settings))
    headings = ("command", "target", "scale", "exit code", "when", "runs", "median [s]", "longest [s]")
    return Table("commands", f"Commands around the trials of {study}", headings, rows, (_HOW_COMMANDS,))


def _commands_rows(settings: Sequence[Setting]) -> Iterator[tuple[Cell, ...]]:
    for setting in settings:
        for command in setting.commands:
            seconds = command.durations_s
            yield (
                command.command,
                setting.target,
                setting.scale,
                Number(command.exit_code, 0),
                command.when,
                Number(len(seconds), 0),
                Number(statistics.median(seconds)),
                Number(max(seconds)),
            )
