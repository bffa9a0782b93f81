"""Writes projections as tables, with the model in their notes."""

from __future__ import annotations

from analysis.advice.projection import FAR, Projection, Span
from analysis.tables.table import MISSING, Cell, Number, Table


def projection_table(projection: Projection) -> Table:
    """Show how long the methods of a setting would take for the wanted state; the notes state the model."""
    wanted, setting = projection.wanted, projection.setting

    def cells(label: str, save: Span, load: Span, kind: str) -> tuple[Cell, ...]:
        return (
            label, Number(save.least_s, 1), Number(save.most_s, 1), save.bound_by or "-",
            Number(load.least_s, 1), Number(load.most_s, 1), load.bound_by or "-", kind,
        )  # fmt: skip

    rows = [
        cells(method.label, method.save, method.load, method.load_kind.cache if method.load_kind else MISSING)
        for method in projection.methods
    ]
    rows.append(cells("(the target by itself)", *projection.ceiling, "-"))
    headings = (
        "method", "save, least [s]", "save, most [s]", "save bound by",
        "load, least [s]", "load, most [s]", "load bound by", "kind of load",
    )  # fmt: skip
    title = (
        f"Projected to {wanted.parameters:.4g} parameters × {wanted.bytes_per_parameter:g} bytes = "
        f"{wanted.size_bytes / 1e9:.4g} GB on {wanted.nodes} nodes: {setting}"
    )
    return Table("projection", title, headings, tuple(rows), tuple(_projection_notes(projection)))


def _projection_notes(projection: Projection) -> list[str]:
    wanted, setting = projection.wanted, projection.setting
    limit = wanted.shared_limit_gbps
    if setting.node_local:
        adds_up = "node-local: the nodes' rates add up, whatever the shared filesystem does"
    elif limit is not None:
        adds_up = f"shared: the nodes' rates add up to the stated limit of {limit:g} GB/s in all"
    else:
        adds_up = (
            "shared, without a stated limit: from all nodes at full rate to one node's rate in all; "
            "set --shared-limit-gbps for a narrower range"
        )
    if setting.node_local is None:
        adds_up += "; the logs don't record whether the target is node-local, so it is taken as shared"
    model = (
        "model: each node writes and reads an equal share of the state, all at once, at the measured rate of a node "
        "(95 % interval of the median), at most at the target's ceiling, or at what exceeded it; time = bytes / rate"
    )
    reach = (
        f"extrapolated by {projection.size_factor:.3g} in bytes per node and {projection.node_factor:.3g} in nodes; "
        "what does not grow with the bytes (opening files, metadata, the slowest of many nodes) is not in the model"
    )
    replicated = setting.agreed.get("state_sharding") == "replicated" and setting.ranks > 1
    unknown = "'-' where the trials are too few for an interval, or the ceiling was not measured"
    notes = [model, adds_up, reach, unknown]
    if replicated:
        notes.append("measured with every rank loading the whole state; projected is a state that nodes share")
    if projection.size_factor > FAR or projection.size_factor < 1 / FAR:
        notes.append("beware: that is far from what was measured; measure a state nearer to the wanted share of a node")
    return notes
