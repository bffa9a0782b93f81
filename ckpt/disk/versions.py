"""Versions of a checkpoint whose name is a symbolic link, where two directories can't be exchanged.

    latest -> .latest@5f2b9c0d1e3a4b68-09c1d27ab3f4e561
               │      │                └ of the version that it replaced
               │      └ random, new for every save
               └ the checkpoint's name, or its beginning

rename(2) replaces a link in a single step on every filesystem. Until then the new link has a name such as
`.partial-latest@node17-5f2b9c0d1e3a4b68.link`: a version that such a link leads to is not published.

The first replacement turns a directory into a link, by two renames: the directory becomes a version, and the new link
gets its name. Between the two, the name has nothing; `interrupted` finds the new checkpoint, and `finish` repeats the
second rename.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ckpt.disk import durable, leftovers
from ckpt.disk.leftovers import Leftover, Version
from ckpt.disk.pinned import Identity, identity

_SUFFIX = ".link"
_NAME = re.compile(r"\.(?P<checkpoint>.*)@(?P<token>[0-9a-f]{16})(?:-(?P<replaced>[0-9a-f]{16}))?", re.DOTALL)
_MOST_LINKS = 40
"""As many as the kernel follows."""


def resolved(path: Path) -> Path:
    """Follow a user's links to the checkpoint's own name, which may be a link to a version, or be free."""
    for _ in range(_MOST_LINKS):
        if not path.is_symlink() or version_of(path):
            break
        target = path.parent / path.readlink()
        path = target.parent.resolve() / target.name
    return path


def version_of(final: Path) -> Path | None:
    """The version that a checkpoint's name leads to; None if the name is no link to a version."""
    try:
        target = str(final.readlink())
    except OSError:
        return None
    version = final.parent / target
    return version if _NAME.fullmatch(target) and "/" not in target and version.is_dir() else None


def interrupted(final: Path) -> Path | None:
    """The link to the new checkpoint, if a first replacement ended between its renames; None if it did not."""
    if os.path.lexists(final):
        return None
    try:
        links = _Scan.of(final.parent).between_renames()
    except OSError:  # there is no such directory
        return None
    return next((link.path for link, *_ in links if leftovers.is_of(link, final)), None)


def finish(final: Path) -> None:
    """Give an interrupted replacement's new checkpoint its name, durably.

    Raises:
        OSError: if that fails.
    """
    if link := interrupted(final):
        durable.fsync_path(final.parent)
        with suppress(FileNotFoundError):  # its save has done so itself
            link.rename(final)
        durable.fsync_path(final.parent)


def sweep(final: Path) -> None:
    """Remove what interrupted saves of a checkpoint left: replaced versions, versions and links without a name."""
    scan = _Scan.of(final.parent)
    for leftover in scan.leftovers():
        if leftovers.is_of(leftover, final):
            leftovers.remove(leftover)
    for link, version in scan.unpublished():
        # In this order: the save makes the link first, and then renames its directory to the version.
        paths = link.path.with_name(link.path.name.removesuffix(_SUFFIX)), final.with_name(version)
        if leftovers.is_of(link, final) and not any(map(os.path.lexists, paths)):
            link.path.unlink(missing_ok=True)


def in_directory(directory: Path) -> Iterator[Leftover]:
    """List the versions of all checkpoints in a directory that no checkpoint's name there leads to."""
    return _Scan.of(directory).leftovers()


def has_other_links(version: Path, link: Path) -> bool:
    """Whether a user has copied the link that leads to a version, to keep it."""
    links = _Scan.of(version.parent).links
    return any(target == version.name and name != link.name for name, target in links.items())


def leads_nowhere(link: Path) -> bool:
    """Whether a name is a link to a version that was removed."""
    try:
        target = str(link.readlink())
    except OSError:
        return False
    return bool(_NAME.fullmatch(target)) and "/" not in target and not os.path.lexists(link.parent / target)


class Replacement:
    """The replacement of a checkpoint by a new version.

    Args:
        staging: the directory that becomes the new version.
        final: the checkpoint's name: a link to a version, or a directory that the replacement makes one.

    Attributes:
        old: the replaced version, or its future path.
        new: the new version.
    """

    def __init__(self, staging: Path, final: Path) -> None:
        self._staging, self._final = staging, final
        version = version_of(final)
        token = secrets.token_hex(8) if version is None else _NAME.fullmatch(version.name)["token"]  # type: ignore[index]  # a version's name
        self.old = version or final.with_name(_name(final, token))
        self.new = final.with_name(f"{_name(final, secrets.token_hex(8))}-{token}")
        self._is_first = version is None
        self._link = staging.with_name(staging.name + _SUFFIX)

    def is_current(self, replaced: Identity) -> bool:
        """Whether the name still has what is to be replaced; a removed version's inode may be another one's by now."""
        version = version_of(self._final)
        return identity(self._final) == replaced and version == (None if self._is_first else self.old)

    def publish(self, replaced: Identity) -> None:
        """Make the directory a version, and the checkpoint's name a link to it.

        Raises:
            OSError: if that fails; `withdraw` then leaves the name as it was.
        """
        self._link.symlink_to(self.new.name)
        self._staging.rename(self.new)
        durable.fsync_path(self._final.parent)  # the name must lead to no version that a power cut could take away
        if self._is_first:
            try:
                self._final.rename(self.old)
            except OSError:
                if identity(self.old) != replaced:  # some network filesystems report an error although it succeeded
                    raise
        self._link.rename(self._final)

    def withdraw(self) -> None:
        """Undo what an unsuccessful `publish` did; the new version has the staging directory's name again."""
        with suppress(OSError):
            if self._is_first and not os.path.lexists(self._final):
                self.old.rename(self._final)
        with suppress(OSError):
            self.new.rename(self._staging)
        with suppress(OSError):
            self._link.unlink(missing_ok=True)

    def retire(self) -> None:
        """Give the replaced version the staging directory's name, unless another link leads to it, by a user's wish."""
        if self.old.name not in _Scan.of(self._final.parent).linked():
            with suppress(OSError):  # another save removed it; or the next one does
                self.old.rename(self._staging)


def _name(final: Path, token: str) -> str:
    return f".{leftovers.beginning(final)}@{token}"


@dataclass(frozen=True, slots=True)
class _Scan:
    """What lies in a directory of checkpoints."""

    directory: Path
    links: Mapping[str, str]
    """All symbolic links, and where they lead."""
    versions: Mapping[str, re.Match[str]]

    @classmethod
    def of(cls, directory: Path) -> _Scan:
        links: dict[str, str] = {}
        versions: dict[str, re.Match[str]] = {}
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_symlink():
                    with suppress(OSError):  # replaced at this moment
                        links[entry.name] = str(Path(entry.path).readlink())
                elif (match := _NAME.fullmatch(entry.name)) and entry.is_dir(follow_symlinks=False):
                    versions[entry.name] = match
        return cls(directory, links, versions)

    def unpublished(self) -> Iterator[tuple[Leftover, str]]:
        """The links that saves have not given the checkpoint's name, and the versions that they lead to."""
        for name, target in self.links.items():
            link = leftovers.parsed(self.directory / name, name.removesuffix(_SUFFIX))
            if link and name.endswith(_SUFFIX) and _NAME.fullmatch(target):
                yield link, target

    def linked(self) -> set[str]:
        """The versions that checkpoints' names lead to."""
        unpublished = {link.path.name for link, _ in self.unpublished()}
        return {target for name, target in self.links.items() if name not in unpublished}

    def between_renames(self) -> Iterator[tuple[Leftover, str, str]]:
        """The links of first replacements that ended between their renames, and the new and the old version."""
        linked = self.linked()
        old_of = {match["token"]: name for name, match in self.versions.items() if name not in linked}
        for link, new in self.unpublished():
            old = old_of.get(self.versions[new]["replaced"] or "") if new in self.versions else None
            if old and not os.path.lexists(self.directory / link.checkpoint):
                yield link, new, old

    def leftovers(self) -> Iterator[Leftover]:
        """The versions that no checkpoint's name leads to."""
        linked = self.linked()
        links = {target: link for link, target in self.unpublished()}
        replaced = {self.versions[name]["replaced"] for name in linked & self.versions.keys()}
        followed = {name for _, *names in self.between_renames() for name in names}
        for name in sorted(self.versions.keys() - linked - followed):
            version, path, link = self.versions[name], self.directory / name, links.get(name)
            if link:
                yield replace(link, path=path, link=link.path)
            else:
                kind = Version.REPLACED if version["token"] in replaced else Version.UNLINKED
                yield Leftover(path, version["checkpoint"], version=kind)
