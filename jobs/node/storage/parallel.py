"""Lustre, GPFS and BeeGFS: what their own tools say of a directory, and of a written file."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from ckpt.disk.mounts import Mount
from jobs.node.known import UnknownFactError, ask, text
from jobs.node.storage.listed import listed

_UNEXPECTED = "{} answers in a form that is not known here"


def lustre_version(_mount: Mount, _directory: Path) -> str:
    """The version of the client."""
    return f"client {text('/sys/fs/lustre/version').removeprefix('lustre: ')}"


def lustre_servers(mount: Mount, directory: Path) -> str:
    """The management servers of the mount, and how many metadata and object targets there are."""
    targets = Counter(re.findall(r"-(MDT|OST)[0-9a-f]{4}_UUID", ask("lfs", "df", str(directory))))
    return listed({"mgs": mount.source.rpartition(":/")[0], "mdts": str(targets["MDT"]), "osts": str(targets["OST"])})


def lustre_volume(mount: Mount, _directory: Path) -> str:
    """The management servers, and the filesystem's name there, without a directory that is mounted alone."""
    servers, _, path = mount.source.rpartition(":/")
    return f"the Lustre filesystem {path.partition('/')[0]} of {servers}"


def lustre_layout(_mount: Mount, directory: Path) -> str:
    """How a directory's new files are striped."""
    return lustre_stripes(ask("lfs", "getstripe", "-d", str(directory)))


def lustre_written(_mount: Mount, file: Path) -> str:
    """How a file is striped."""
    return lustre_stripes(ask("lfs", "getstripe", str(file)))


def lustre_stripes(answer: str) -> str:
    """The stripes in the answer of `lfs getstripe`, of every component where the layout has several.

    Raises:
        UnknownFactError: if there are none.
    """
    first, *components = re.split(r"lcme_extent\.e_start:", answer)
    if not components:
        return _stripes(first)
    return "; ".join(f"{_extent(component)}: {_stripes(component)}" for component in components)


def _extent(component: str) -> str:
    end = re.search(r"lcme_extent\.e_end:\s*(\S+)", component)
    return f"{component.split(maxsplit=1)[0]}-{end[1] if end else '?'}"


def _stripes(answer: str) -> str:
    facts = {}
    for name in ("stripe_count", "stripe_size", "pattern", "pool"):
        value = re.search(rf"(?<![a-z])(?:lmm_)?{name}:\s*(\S+)", answer)
        if value:
            facts[name] = value[1]
    if "stripe_count" not in facts:
        raise UnknownFactError(_UNEXPECTED.format("lfs getstripe"))
    return listed(facts)


def gpfs_version(mount: Mount, _directory: Path) -> str:
    """The version of the filesystem's format, and in brackets that of the release which brought it."""
    return gpfs_facts(ask("mmlsfs", _gpfs_device(mount), "-V"))


def gpfs_servers(mount: Mount, _directory: Path) -> str:
    """How many disks the filesystem has, and on how many servers."""
    return gpfs_disks(ask("mmlsnsd", "-f", _gpfs_device(mount)))


def _gpfs_device(mount: Mount) -> str:
    return mount.source.removeprefix("/dev/")


def gpfs_facts(answer: str) -> str:
    """The values in the answer of `mmlsfs`.

    Raises:
        UnknownFactError: if there are none.
    """
    values = re.findall(r"^\s*-[A-Za-z]\s+(\S.*?) {2,}\S", answer, re.MULTILINE)
    if not values:
        raise UnknownFactError(_UNEXPECTED.format("mmlsfs"))
    return ", ".join(values)


def gpfs_disks(answer: str) -> str:
    """The disks and servers in the answer of `mmlsnsd`.

    Raises:
        UnknownFactError: if there are none.
    """
    rows = answer.partition("---")[2].splitlines()[1:]
    disks = [row.split() for row in rows if row.strip()]
    servers = {server for disk in disks for server in disk[2].split(",") if "." in server or len(disk) == 3}
    if not disks:
        raise UnknownFactError(_UNEXPECTED.format("mmlsnsd"))
    return listed({"nsds": str(len(disks)), "servers": "+".join(sorted(servers))})


def gpfs_volume(mount: Mount, _directory: Path) -> str:
    """The filesystem's name in its cluster."""
    return f"the GPFS filesystem {_gpfs_device(mount)}"


def gpfs_layout(mount: Mount, directory: Path) -> str:
    """The block size, and the pool and replicas of a directory's new files."""
    return f"block_size={gpfs_facts(ask('mmlsfs', _gpfs_device(mount), '-B'))}, {gpfs_written(mount, directory)}"


def gpfs_written(_mount: Mount, file: Path) -> str:
    """The pool and replicas of a file."""
    return gpfs_attributes(ask("mmlsattr", "-L", str(file)))


def gpfs_attributes(answer: str) -> str:
    """What matters here in the answer of `mmlsattr -L`.

    Raises:
        UnknownFactError: if it isn't there.
    """
    shown = {"data replication": "data_replicas", "metadata replication": "metadata_replicas",
             "storage pool name": "pool", "fileset name": "fileset", "Misc attributes": "attributes"}  # fmt: skip
    lines = dict(line.partition(":")[::2] for line in answer.splitlines() if ":" in line)
    facts = {name: (lines.get(key, "").split() or [""])[0] for key, name in shown.items()}
    if not facts["pool"]:
        raise UnknownFactError(_UNEXPECTED.format("mmlsattr"))
    return listed({name: value for name, value in facts.items() if value})


def beegfs_version(_mount: Mount, _directory: Path) -> str:
    """The version of the client's kernel module."""
    return f"client {text('/sys/module/beegfs/version')}"


def beegfs_servers(mount: Mount, _directory: Path) -> str:
    """The storage servers."""
    answer = ask("beegfs-ctl", "--listnodes", "--nodetype=storage", f"--mount={mount.mount_point}")
    names = re.findall(r"^\s*(\S+) \[ID: \d+\]", answer, re.MULTILINE)
    if not names:
        raise UnknownFactError(_UNEXPECTED.format("beegfs-ctl --listnodes"))
    return listed({"storage": "+".join(names)})


def beegfs_layout(_mount: Mount, path: Path) -> str:
    """How a file, or a directory's new files, are striped; by the tool of version 7, else by that of version 8."""
    try:
        return beegfs_stripes(ask("beegfs-ctl", "--getentryinfo", str(path)))
    except UnknownFactError:
        return beegfs_stripes(ask("beegfs", "entry", "info", "--retro", str(path)))


def beegfs_stripes(answer: str) -> str:
    """What matters here in the answer of `beegfs-ctl --getentryinfo`.

    Raises:
        UnknownFactError: if it isn't there.
    """
    patterns = {
        "type": r"\+ Type: (\S+)", "chunk_size": r"\+ Chunksize: (\S+)", "targets": r"desired: (\d+)",
        "targets_used": r"actual: (\d+)", "pool": r"\+ Storage Pool: (\d+)",
    }  # fmt: skip
    matches = {name: re.search(pattern, answer) for name, pattern in patterns.items()}
    facts = {name: match[1] for name, match in matches.items() if match}
    if "chunk_size" not in facts:
        raise UnknownFactError(_UNEXPECTED.format("BeeGFS's tool"))
    return listed(facts)
