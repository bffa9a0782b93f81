"""CephFS, GlusterFS, MooseFS, JuiceFS and NFS: what their clients say of a directory, and of a written file."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ckpt.disk.mounts import Mount
from jobs.node.known import UnknownFactError, ask, attribute, text
from jobs.node.storage.listed import listed
from jobs.node.storage.local import kernel_version


def ceph_version(mount: Mount, directory: Path) -> str:
    """The version of the client: the kernel's, or ceph-fuse's."""
    if mount.filesystem == "ceph":
        return kernel_version(mount, directory)
    match = re.search(r"ceph version (\S+)", ask("ceph-fuse", "--version"))
    return f"ceph-fuse {match[1] if match else 'of an unknown version'}"


def ceph_servers(mount: Mount, directory: Path) -> str:
    """The monitors, and the cluster's id.

    Raises:
        UnknownFactError: if neither the mount nor the client's configuration names any.
    """
    facts = {}
    option = re.search(r"(?:^|,)mon_addr=([^,]+)", mount.options)
    if option:
        facts["monitors"] = option[1].replace("/", "+")
    elif mount.filesystem == "ceph":
        facts["monitors"] = mount.source.rpartition(":/")[0].replace(",", "+")
    else:
        facts |= _monitors_of(Path(os.environ.get("CEPH_CONF", "/etc/ceph/ceph.conf")))
    for name in ("ceph.cluster_fsid", "ceph.fsid"):
        try:
            facts["cluster"] = attribute(directory, name)
            break
        except UnknownFactError:
            continue
    if not facts:
        raise UnknownFactError(
            "ceph-fuse shows no monitors, and there is no /etc/ceph/ceph.conf that this user may read"
        )
    return listed(facts)


def _monitors_of(configuration: Path) -> dict[str, str]:
    try:
        match = re.search(r"^\s*mon[ _]host\s*=\s*(.+?)\s*$", text(configuration), re.MULTILINE)
    except OSError:
        return {}
    return {"monitors": re.sub(r"[,\s]+", "+", match[1])} if match else {}


def ceph_volume(_mount: Mount, directory: Path) -> str:
    """The cluster, whose disks all of its filesystems share."""
    for name in ("ceph.cluster_fsid", "ceph.fsid"):
        with suppress(UnknownFactError):
            return f"the Ceph cluster {attribute(directory, name)}"
    raise UnknownFactError("the client doesn't show the cluster's id")


def ceph_layout(mount: Mount, directory: Path) -> str:
    """How a directory's new files are striped: by its own layout, or that of the nearest directory that has one."""
    top = Path(mount.mount_point)
    for path in (directory, *directory.parents):
        try:
            layout = attribute(path, "ceph.dir.layout")
        except UnknownFactError:
            if path in {top, path.parent}:
                break
        else:
            return _ceph_words(layout) + _ceph_replicas(layout)
    return "the default: no directory from here up to the mount has a layout of its own"


def ceph_written(_mount: Mount, file: Path) -> str:
    """How a file is striped."""
    return _ceph_words(attribute(file, "ceph.file.layout"))


def _ceph_replicas(layout: str) -> str:
    """How many copies the pool keeps, where this user may ask the monitors."""
    pool = re.search(r"pool=(\S+)", layout)
    try:
        size = re.search(
            r"size: (\d+)", ask("ceph", "--connect-timeout", "5", "osd", "pool", "get", pool[1] if pool else "", "size")
        )
    except UnknownFactError:
        return ""
    return f", replicas={size[1]}" if size else ""


def _ceph_words(layout: str) -> str:
    return ", ".join(layout.split())


def gluster_version(mount: Mount, _directory: Path) -> str:
    """The version of the client."""
    match = re.search(r'"Package Version": "([^"]+)"', text(Path(mount.mount_point) / ".meta" / "version"))
    if match is None:
        raise UnknownFactError("the mount's .meta/version is in a form that is not known here")
    return match[1]


def gluster_servers(mount: Mount, _directory: Path) -> str:
    """The server that the mount names, the hosts of the bricks, and their number."""
    hosts = [option["remote-host"] for name, option in _translators(mount) if name == "protocol/client"]
    return listed({"mounted_from": mount.source, "bricks": str(len(hosts)), "hosts": "+".join(sorted(set(hosts)))})


def gluster_volume(mount: Mount, _directory: Path) -> str:
    """The bricks, which are the same whichever server a client was mounted from."""
    clients = [options for name, options in _translators(mount) if name == "protocol/client"]
    bricks = sorted(f"{options['remote-host']}:{options['remote-subvolume']}" for options in clients)
    more = f" and {len(bricks) - 1} more" if len(bricks) > 1 else ""
    return f"the GlusterFS volume of the brick {bricks[0]}{more}"


def gluster_layout(mount: Mount, _directory: Path) -> str:
    """How the volume places files: distributed, replicated, dispersed, sharded; and what its client does in between."""
    return gluster_graph(_translators(mount))


def gluster_graph(translators: Sequence[tuple[str, dict[str, str]]]) -> str:
    """The layout that the translators of a client's graph make: type and options of each."""
    counts = Counter(name for name, _ in translators)
    placement = sorted(name.removeprefix("cluster/") for name in counts if name.startswith("cluster/"))
    facts = {"placement": "+".join(placement) or "one brick", "bricks": str(counts["protocol/client"])}
    for name, fact in (("cluster/replicate", "replicate_sets"), ("cluster/disperse", "disperse_sets")):
        if counts[name]:
            facts[fact] = str(counts[name])
            facts["set_size"] = str(counts["protocol/client"] // counts[name])
    for name, options in translators:
        if name == "features/shard":
            facts["shard_block_size"] = options.get("shard-block-size", "the default")
        if name == "cluster/disperse" and "redundancy" in options:
            facts["redundancy"] = options["redundancy"]
    caches = sorted(name.removeprefix("performance/") for name in counts if name.startswith("performance/"))
    if caches:
        facts["client"] = "+".join(caches)
    return listed(facts)


def _translators(mount: Mount) -> list[tuple[str, dict[str, str]]]:
    """The translators of the client's graph: type and options.

    Raises:
        UnknownFactError: if the client doesn't show them.
    """
    active = Path(mount.mount_point) / ".meta" / "graphs" / "active"
    translators = []
    for translator in sorted(entry for entry in active.iterdir() if (entry / "type").is_file()):
        options = translator / "options"
        values = {option.name: text(option) for option in options.iterdir()} if options.is_dir() else {}
        translators.append((text(translator / "type"), values))
    if not translators:
        raise UnknownFactError("the client shows no translators in the mount's .meta")
    return translators


def gluster_written(_mount: Mount, file: Path) -> str:
    """On how many bricks a file lies, and how."""
    try:
        return gluster_pathinfo(attribute(file, "glusterfs.pathinfo"))
    except UnknownFactError:
        return gluster_pathinfo(attribute(file, "trusted.glusterfs.pathinfo"))


def gluster_pathinfo(value: str) -> str:
    """The kinds of placement, and the bricks, in a file's pathinfo."""
    kinds = Counter(kind.lower() for kind in re.findall(r"<([A-Z_]+):", value))
    bricks = re.findall(r"<POSIX\(([^)]*)\):([^:>]+):", value)
    if not bricks:
        raise UnknownFactError("the file's pathinfo names no brick")
    return listed({"placement": "+".join(sorted(kinds)) or "one brick", "bricks": str(len({*bricks}))})


def moosefs_version(_mount: Mount, _directory: Path) -> str:
    """The version of the client."""
    match = re.search(r"MFS version (\S+)|version:? ?(\d\S+)", ask("mfsmount", "-V"))
    return next(filter(None, match.groups())) if match else "of an unknown version"


def moosefs_servers(mount: Mount, _directory: Path) -> str:
    """The master."""
    return listed({"master": mount.source.partition("#")[2] or mount.source})


def moosefs_volume(mount: Mount, _directory: Path) -> str:
    """The master, which has one filesystem, without a directory that is mounted alone."""
    return f"the MooseFS of {mount.source.partition('#')[2].partition('/')[0]}"


def moosefs_layout(_mount: Mount, directory: Path) -> str:
    """The number of copies of a directory's new files, and how long removed ones are kept."""
    facts = {"goal": _last_word(ask("mfsgetgoal", str(directory)))}
    facts["trash_time_s"] = _last_word(ask("mfsgettrashtime", str(directory)))
    return listed(facts)


def _last_word(answer: str) -> str:
    return answer.rpartition(":")[2].strip()


def moosefs_written(_mount: Mount, file: Path) -> str:
    """The chunks and copies of a file."""
    return moosefs_chunks(ask("mfsfileinfo", str(file)))


def moosefs_chunks(answer: str) -> str:
    """The chunks, and the copies of each, in the answer of `mfsfileinfo`.

    Raises:
        UnknownFactError: if there are none.
    """
    chunks = re.split(r"^\s*chunk \d+:", answer, flags=re.MULTILINE)[1:]
    if not chunks:
        raise UnknownFactError("mfsfileinfo shows no chunk of the file")
    copies = [len(re.findall(r"^\s*copy \d+:", chunk, re.MULTILINE)) for chunk in chunks]
    shown = str(copies[0]) if len(set(copies)) == 1 else f"{min(copies)}-{max(copies)}"
    servers = set(re.findall(r"^\s*copy \d+: ([^\s:]+)", answer, re.MULTILINE))
    return listed({"chunks": str(len(chunks)), "copies": shown, "chunkservers": str(len(servers))})


def juicefs_version(mount: Mount, _directory: Path) -> str:
    """The version of the client."""
    return str(_juicefs(mount).get("Version", "of an unknown version"))


def juicefs_servers(mount: Mount, _directory: Path) -> str:
    """The object store; nothing of what may hold a password."""
    about = _juicefs(mount).get("Format", {})
    return listed({"storage": str(about.get("Storage", "unknown")), "bucket": str(about.get("Bucket", "unknown"))})


def juicefs_volume(mount: Mount, _directory: Path) -> str:
    """The volume's id."""
    about = _juicefs(mount).get("Format", {})
    return f"the JuiceFS volume {about.get('Name')} ({about.get('UUID')})"


def juicefs_layout(mount: Mount, _directory: Path) -> str:
    """Block size and compression; whether writes go to the local cache first."""
    configuration = _juicefs(mount)
    about, chunk = configuration.get("Format", {}), configuration.get("Chunk", {})
    facts = {"block_size_kib": about.get("BlockSize"), "compression": about.get("Compression") or "none",
             "trash_days": about.get("TrashDays"), "writeback": chunk.get("Writeback", False)}  # fmt: skip
    return listed({name: str(value) for name, value in facts.items() if value is not None})


def _juicefs(mount: Mount) -> Any:
    """What the client shows in a file at the top of the mount, which may be root's only."""
    configuration = json.loads(text(Path(mount.mount_point) / ".config"))
    if not isinstance(configuration, dict):
        raise UnknownFactError("the mount's .config is in a form that is not known here")
    return configuration


def nfs_version(mount: Mount, directory: Path) -> str:
    """The version of the protocol, and the kernel's, whose client it is."""
    match = re.search(r"(?:^|,)(?:nfs)?vers=([\d.]+)", mount.options)
    return f"NFS {match[1] if match else 'of an unknown version'}, client of {kernel_version(mount, directory)}"


def nfs_servers(mount: Mount, _directory: Path) -> str:
    """The server, its address, and the connections to it."""
    facts = {"server": mount.source.rpartition(":/")[0]}
    for name in ("addr", "nconnect"):
        match = re.search(rf"(?:^|,){name}=([^,]+)", mount.options)
        if match:
            facts[name] = match[1]
    return listed(facts)


def nfs_volume(mount: Mount, directory: Path) -> str:
    """The server's address, and its id of the export; of clients that don't show that, the path."""
    match = re.search(r"(?:^|,)addr=([^,]+)", mount.options)
    host, _, path = mount.source.rpartition(":/")
    number = directory.stat().st_dev
    rows: list[list[str]] = []
    with suppress(OSError):
        rows = [line.split() for line in text("/proc/fs/nfsfs/volumes").splitlines()]
    ids = [row[4] for row in rows if len(row) > 4 and row[3] == f"{os.major(number)}:{os.minor(number)}"]
    export = f"with the id {ids[0]}" if ids else f"/{path}"
    return f"the export {export} of the NFS server {match[1] if match else host}"
