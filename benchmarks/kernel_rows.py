"""Rows and families of results/reference/kernels-h100.json: a run of single kernels beside the recorded peers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import geometric_mean as plain_mean
from typing import Any

from kernel_names import (
    AGAIN,
    FAMILIES,
    ONE_CALL,
    SET_ASIDE,
    TENSORWISE,
    TOGETHER,
    Shape,
    family_name,
    is_packed,
    label,
    name_of,
    peer_name,
)

from mlaprof.analysis.arms import arm_of, speedup
from mlaprof.analysis.kernels import KernelSummary, summarize_kernels
from mlaprof.analysis.stats import Estimate, geometric_mean
from mlaprof.kernel_shapes import CEILINGS, OWN
from mlaprof.records import KernelMeasurement, Run

LEAST_ROUNDS = 3  # of which an interval can be told


def artifact_of(run: Run, peers: Mapping[str, Any]) -> dict[str, Any]:
    """rows, families and ceilings, as committed."""
    summary = summarize_kernels(run)
    shapes = list(shapes_of(run, summary))
    ratios: dict[str, list[Estimate]] = {}
    rows = []
    for shape in shapes:
        row, ratio = row_of(shape, summary, peers)
        rows.append(row)
        if ratio is not None:
            ratios.setdefault(row["family"], []).append(ratio)
    rows += together(rows, peers, summary)
    rotated(rows)
    return {
        "ceilings": {
            "copy_rate": summary.copy_rate,
            "product_rates": dict(summary.product_rates),
            "recorded": {name: peers[name] for name in ("copy_rate", "product_rates")},
        },
        "families": {
            name: family_of([row for row in rows if row["family"] == name], ratios.get(name, [])) for name in FAMILIES
        },
        "rows": rows,
    }


def shapes_of(run: Run, summary: KernelSummary) -> Iterator[Shape]:
    """Every shape of the run but the ceilings, in its order."""
    cells = {f"{cell.kernel}/{cell.shape}/{cell.way}": cell for cell in summary.cells}
    by_cell: dict[str, dict[str, KernelMeasurement]] = {}
    for each in run.kernels:
        if each.point.kernel not in CEILINGS:
            by_cell.setdefault(each.point.cell, {})[each.point.provider] = each
    for found in by_cell.values():
        arms = {name: arm for name, each in found.items() if (arm := arm_of(each.point.key, {0: each})) is not None}
        first = next(iter(found.values())).point
        yield Shape(
            kernel=first.kernel,
            axes=first.shape,
            leads={name: found[name] for name in arms},
            arms=arms,
            cells={name: cells[found[name].point.key] for name in arms},
        )


def row_of(shape: Shape, summary: KernelSummary, peers: Mapping[str, Any]) -> tuple[dict[str, Any], Estimate | None]:
    """The row, and its ratio to the fastest other provider of the run."""
    ours, theirs = shape.fastest(own=True), shape.fastest(own=False)
    assert ours is not None
    lead, cell = shape.leads[ours], shape.cells[ours]
    estimate = shape.arms[ours].device_s
    ratio = speedup(shape.arms[theirs], shape.arms[ours]) if theirs else None
    chain = theirs == "torch" and shape.kernel not in ONE_CALL
    same_run = None
    if ratio is not None:
        same_run = {"peer": theirs, "value": ratio.median, "ci": interval(ratio), "chain": chain}
    family = family_name(shape)
    bound = lead.precision if family == "sparse_attn_prefill" else bound_of(lead, summary)  # the L2 serves its gathers
    recorded, other_product = recorded_of(peer_name(shape), bound, summary, peers, packed=is_packed(shape))
    if recorded is not None:
        again = AGAIN.get(shape.kernel, AGAIN.get(family, {})).get(recorded["peer"].partition("_")[0])
        recorded["again"] = again if again in shape.arms else None
    row = {
        "family": family,
        "kernel": shape.kernel,
        "shape": label(shape),
        "axes": dict(shape.axes),
        "ours": {
            "way": cell.way,
            "device_s": estimate.median,
            "ci": interval(estimate),
            "rounds": estimate.n,
        },
        "forms": {name: arm.device_s.median for name, arm in shape.arms.items() if name in OWN},
        "same_run": {name: arm.device_s.median for name, arm in shape.arms.items() if name not in OWN},
        "ratio_same_run": same_run,
        "recorded": recorded,
        "ratio_recorded": recorded["scaled_s"] / estimate.median if recorded else None,
        "other_product": other_product,
        "roofline": cell.roofline,
        "bound": bound,
        "flop_rate": cell.flop_rate,
        "byte_rate": cell.byte_rate,
        "checks": {check.name: {"value": check.value, "limit": check.limit} for check in lead.checks},
    }
    return row | {"ratio": hardest(row)}, ratio


def together(
    rows: Sequence[Mapping[str, Any]], peers: Mapping[str, Any], summary: KernelSummary
) -> list[dict[str, Any]]:
    """A row for launches of ours that a recorded peer does at once: the times of their rows, added."""
    found = []
    for kernels, peer in TOGETHER.items():
        parts = [[row for row in rows if row["kernel"] == kernel] for kernel in kernels]
        for members in zip(*parts, strict=True):
            total_s = sum(row["ours"]["device_s"] for row in members)
            recorded, _ = recorded_of(f"{peer} {members[0]['shape']}", "bytes", summary, peers)
            assert recorded is not None
            recorded["again"] = None
            row = {
                "family": "fused",
                "kernel": " + ".join(kernels),
                "shape": members[0]["shape"],
                "ours": {"way": " + ".join(row["ours"]["way"] for row in members), "device_s": total_s, "ci": None},
                "same_run": {},
                "ratio_same_run": None,
                "recorded": recorded,
                "ratio_recorded": recorded["scaled_s"] / total_s,
                "other_product": None,
                "roofline": sum(row["roofline"] * row["ours"]["device_s"] for row in members) / total_s,
                "bound": "bytes",
            }
            found.append(row | {"ratio": hardest(row)})
    return found


def rotated(rows: Sequence[dict[str, Any]]) -> None:
    """Adds to rows of absorb, which rotates too, what the recorded product and a rotation of its own would take."""
    rotations = {row["shape"]: row["ours"]["device_s"] for row in rows if row["kernel"] == "query_rope"}
    for row in rows:
        if row["kernel"] == "absorb" and row["shape"] in rotations:
            both_s = row["recorded"]["scaled_s"] + rotations[row["shape"]]
            row["with_rotation"] = {"device_s": both_s, "ratio": both_s / row["ours"]["device_s"]}


def family_of(rows: Sequence[Mapping[str, Any]], ratios: Sequence[Estimate]) -> dict[str, Any]:
    """Geometric means: over the fastest provider of the run, over the recorded peer, and over the harder of both."""
    mean = geometric_mean(ratios)
    return {
        "shapes": len(rows),
        "same_run": {
            "geomean": mean.median,
            "ci": interval(mean) if all(ratio.n >= LEAST_ROUNDS for ratio in ratios) else None,
            **least([(row["ratio_same_run"]["value"], row) for row in rows if row["ratio_same_run"]]),
        },
        "recorded": plain([(row["ratio_recorded"], row) for row in rows if kept(row)]),
        "hardest": plain([(row["ratio"], row) for row in rows if row["ratio"] is not None]),
        "again": again_of(rows),
    }


def interval(estimate: Estimate) -> list[float] | None:
    """None of one or two rounds, which leave none to tell."""
    return [estimate.ci_low, estimate.ci_high] if estimate.n >= LEAST_ROUNDS else None


def again_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Of peers that were timed in both runs: this run's time over the recorded one, and over that one scaled."""
    both = [(row["same_run"][row["recorded"]["again"]], row["recorded"]) for row in rows if was_again(row)]
    if not both:
        return None
    return {
        "over_recorded": plain_mean(here_s / recorded["device_s"] for here_s, recorded in both),
        "over_scaled": plain_mean(here_s / recorded["scaled_s"] for here_s, recorded in both),
        "shapes": len(both),
    }


def plain(ratios: Sequence[tuple[float, Mapping[str, Any]]]) -> dict[str, Any] | None:
    return {"geomean": plain_mean(ratio for ratio, _ in ratios), **least(ratios)} if ratios else None


def least(ratios: Sequence[tuple[float, Mapping[str, Any]]]) -> dict[str, Any]:
    value, row = min(ratios, key=lambda each: each[0])
    return {"least": value, "least_shape": name_of(row), "shapes": len(ratios)}


def hardest(row: Mapping[str, Any]) -> float | None:
    """Our speed over the harder peer, of the run or recorded; a chain of torch operations is none.

    A recorded peer that was timed again in the run counts by that time alone.
    """
    ratios = [row["ratio_recorded"]] if kept(row) and not was_again(row) else []
    if row["ratio_same_run"] and not row["ratio_same_run"]["chain"]:
        ratios.append(row["ratio_same_run"]["value"])
    return min(ratios, default=None)


def kept(row: Mapping[str, Any]) -> bool:
    """A peer was recorded, and its time is of its kernel."""
    return row["recorded"] is not None and row["recorded"]["set_aside"] is None


def was_again(row: Mapping[str, Any]) -> bool:
    return row["recorded"] is not None and row["recorded"]["again"] is not None


def bound_of(lead: KernelMeasurement, summary: KernelSummary) -> str:
    """What the roofline of this run says the shape is bound by: the precision of its products, or bytes."""
    assert summary.copy_rate is not None
    if lead.flops and lead.flops / summary.product_rates[lead.precision] > lead.bytes / summary.copy_rate:
        return lead.precision
    return "bytes"


def recorded_of(
    name: str, bound: str, summary: KernelSummary, peers: Mapping[str, Any], packed: bool = False
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The recorded peer scaled by the ceilings of the two runs, and one that computes another product."""
    ceiling, recorded_ceiling = summary.copy_rate, peers["copy_rate"]
    if bound != "bytes":
        ceiling, recorded_ceiling = summary.product_rates[bound], peers["product_rates"][bound]
    assert ceiling is not None
    found: dict[bool, dict[str, Any]] = {}
    for each in peers["rows"]:
        if f"{each['kernel']} {each['shape']}" != name or (packed and "flashmla" not in each["peer"]):
            continue
        found[TENSORWISE in each["peer"]] = {
            "peer": each["peer"],
            "device_s": each["device_s"],
            "scaled_s": each["device_s"] * recorded_ceiling / ceiling,
            "set_aside": SET_ASIDE.get(name),
        }
    return found.get(False), found.get(True)
