"""torch.distributed's process group (gloo), for the strategies that use its collectives."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ckpt.process_group.exchange import Exchange

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # it is documented all the same

_default_group: list[str] = []
"""The name of the group that is torch.distributed's default in this process; at most one."""

_stores: list[Any] = []
"""The stores that gloo was started with: it keeps no reference to the Python part of a store."""


def start(store: Store | Exchange, group: str, prefix: str, rank: int, size: int, timeout_s: float) -> None:
    """Make a group torch.distributed's default process group, unless it is already.

    Args:
        store: the ranks meet through it.
        group: the group's name.
        prefix: of the keys in the store; no two starts may share one.
        rank: of this process in the group.
        size: the number of the group's processes.
        timeout_s: how long a collective may take.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        if _default_group == [group]:
            return
        dist.destroy_process_group()
    torch_store = _as_torch_store(store, timeout_s) if isinstance(store, Exchange) else store
    dist.init_process_group(
        "gloo",
        store=dist.PrefixStore(prefix, torch_store),  # type: ignore[attr-defined]  # it is documented all the same
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )
    _default_group[:] = [group]
    _stores.append(torch_store)


def _as_torch_store(exchange: Exchange, timeout_s: float) -> Any:
    """Wrap an exchange in a store of torch.distributed."""
    import torch.distributed as dist

    class _Store(dist.Store):  # type: ignore[name-defined,misc]  # it is documented all the same
        def set(self, key: str, value: Any) -> None:
            exchange.set(key, value)

        def get(self, key: str) -> bytes:
            exchange.wait([key], timedelta(seconds=timeout_s))
            return exchange.get(key)

        def add(self, key: str, amount: int) -> int:
            return exchange.add(key, amount)

        def compare_set(self, key: str, expected: Any, desired: Any) -> bytes:
            return exchange.compare_set(key, expected, desired)

        def check(self, keys: list[str]) -> bool:
            return exchange.check(keys)

        def wait(self, keys: list[str], limit: timedelta = timedelta(seconds=timeout_s)) -> None:
            exchange.wait(keys, limit)

        def delete_key(self, key: str) -> bool:
            return exchange.delete_key(key)

    return _Store()
