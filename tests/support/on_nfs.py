"""Trials on NFS beside its server: a program for `devcluster filesystems nfs`, where one kernel is client and server.

It prints as JSON what the log calls every save and load, and what the server's counters showed meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path

from ckpt.disk import page_cache
from support import servers
from support.servers import Counts, Observed, Witness

_EXPORT = Path("/run/export")
_SECOND = Path("/run/second")


class Server(Witness):
    """The kernel's own NFS server, its disk, and the files that it exports."""

    def counts(self) -> Counts:
        """Count what it got from its clients and sent to them, and what its disk has read and doesn't have yet."""
        sent_bytes, got_bytes = _exchanged_bytes()
        read_bytes, _ = servers.transferred_bytes(Path("/sys/block/ubda/stat"))
        return Counts(got_bytes, read_bytes, sum(map(servers.unsynced_bytes, self._files())), sent_bytes)

    def forget(self) -> None:
        """Drop the files' pages."""
        for path in self._files():
            page_cache.evict_file(path)

    def _files(self) -> list[Path]:
        return [path for path in _EXPORT.rglob("*") if path.is_file()]

    def export(self, option: str) -> None:
        """Export with `sync` or `async`: whether the server syncs what clients ask it to sync."""
        options = f"rw,{option},no_root_squash,no_subtree_check,fsid=0,insecure"
        subprocess.run(["exportfs", "-o", options, f"127.0.0.1:{_EXPORT}"], check=True, timeout=60)


def _exchanged_bytes() -> tuple[int, int]:
    """What the server has sent to its clients, and what it has got from them: the contents of files."""
    lines = Path("/proc/net/rpc/nfsd").read_text().splitlines()
    [(sent, got)] = [line.split()[1:] for line in lines if line.startswith("io ")]
    return int(sent), int(got)


def observe_all(mounted: Path) -> dict[str, Observed]:
    """Save, and load by this client and by a second one, from the server's memory and from its disk.

    Then save on an export with `async`, which lets the server answer before it has synced.
    """
    server = Server()
    with tempfile.TemporaryDirectory(dir=mounted) as directory:
        here = servers.watched_bench(Path(directory), server)
        there = servers.on_another_node(here, _SECOND, server)
        seen = {"save": servers.save(here)}
        seen["cold load"] = servers.load(here, cold=True)
        seen["warm load"] = servers.load(here, cold=False)
        seen["second client's load"] = servers.load(there, cold=True)
        server.forget()
        seen["cold load from disk"] = servers.load(here, cold=True)
        server.forget()
        seen["second client's load from disk"] = servers.load(there, cold=True)
    server.export("async")
    with tempfile.TemporaryDirectory(dir=mounted) as directory:
        seen["save, async"] = servers.save(servers.watched_bench(Path(directory), server))
    return seen


def main() -> None:
    """Mount a second client, and print what was observed."""
    Path("/proc/sys/vm/dirty_writeback_centisecs").write_text("0")  # nothing is written back unless somebody syncs
    _SECOND.mkdir()
    options = "vers=4.2,proto=tcp,nosharecache"
    subprocess.run(["mount", "-t", "nfs4", "-o", options, "127.0.0.1:/", _SECOND], check=True, timeout=60)
    seen = observe_all(Path(os.environ["DEVCLUSTER_FILESYSTEMS"]) / "nfs")
    subprocess.run(["umount", _SECOND], check=True, timeout=60)
    print(json.dumps({name: asdict(observed) for name, observed in seen.items()}))


if __name__ == "__main__":
    main()
