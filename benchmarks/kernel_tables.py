"""The tables of docs/kernels.md, one block a family, from the rows of results/reference/kernels-h100.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import geometric_mean
from typing import Any

from kernel_names import FAMILIES, name_of
from kernel_rows import was_again

GOAL_MEAN, GOAL_LEAST = 1.0, 0.9
TITLES = {
    "index_logits": "scores, prefill",
    "paged_index_logits": "scores, decode",
    "topk": "selection",
    "sparse_attn_prefill": "attention, prefill",
    "sparse_attn_decode": "attention, decode",
    "sparse_attn_packed": "attention, decode, packed rows",
    "block_gemm": "block-scaled fp8 products",
    "group_quant": "activation quantiser",
    "fused": "norms, rotations, cache writes",
    "head_products": "products of a head",
}


def blocks(artifact: Mapping[str, Any]) -> dict[str, str]:
    """The text of every block, by its name."""
    found = {"families": families(artifact)}
    for name in FAMILIES:
        found[name] = table([row for row in artifact["rows"] if row["family"] == name])
    return found


def fill(page: str, artifact: Mapping[str, Any]) -> str:
    """The page with every block renewed. Raises ValueError where one is missing or not closed."""
    for name, text in blocks(artifact).items():
        pattern = rf"(<!-- kernels:{name} -->\n).*?(<!-- /kernels -->)"
        page, times = re.subn(pattern, lambda found, text=text: f"{found[1]}{text}{found[2]}", page, flags=re.DOTALL)  # type: ignore[misc]
        if times != 1:
            raise ValueError(f"kernels:{name}: expected one block, got {times}; write both of its comments")
    for name, value in quotes(artifact).items():
        pattern = rf"\d+(\.\d+)?(?=<!-- {re.escape(name)} -->)"
        page = re.sub(pattern, lambda found, value=value: quoted(value, found[1]), page)  # type: ignore[misc]
    return page


def quoted(value: float, decimals: str | None) -> str:
    """With as many digits behind the point as stand there."""
    return f"{value:.{len(decimals) - 1 if decimals else 0}f}"


def quotes(artifact: Mapping[str, Any]) -> dict[str, float]:
    """Every figure that the page quotes outside its tables, by the name in the comment behind it."""
    ceilings, recorded = artifact["ceilings"], artifact["ceilings"]["recorded"]
    attention = {(row["family"], row["shape"]): row for row in artifact["rows"] if row["kernel"] == "sparse_attn"}
    found = {
        "copy, GB/s": ceilings["copy_rate"] / 1e9,
        "recorded copy, GB/s": recorded["copy_rate"] / 1e9,
        **{f"{name}, TFLOP/s": rate / 1e12 for name, rate in ceilings["product_rates"].items()},
        **{f"recorded {name}, TFLOP/s": rate / 1e12 for name, rate in recorded["product_rates"].items()},
        "shapes": sum("+" not in row["kernel"] for row in artifact["rows"]),
    }
    for name, family in artifact["families"].items():
        found |= {f"{name}, {side}": family[side]["geomean"] for side in ("same_run", "recorded", "hardest")}
        found |= {f"{name}, least {side}": family[side]["least"] for side in ("same_run", "recorded", "hardest")}
        if family["again"]:
            found |= {f"{name}, again over {to}": family["again"][f"over_{to}"] for to in ("recorded", "scaled")}
        forms = [row["forms"] for row in of(artifact, name) if len(row.get("forms", ())) == 2]
        if forms:
            found[f"{name}, hopper over triton"] = geometric_mean(each["triton"] / each["hopper"] for each in forms)
    for shape in ("m1", "m64", "m1024", "m4096"):
        absorb = next(row for row in artifact["rows"] if row["kernel"] == "absorb" and row["shape"] == shape)
        found[f"absorb with rotation, {shape}"] = absorb["with_rotation"]["ratio"]
    for heads in (16, 64, 128):
        shape = f"b64 kv32768 h{heads}"
        packed, plain = attention["sparse_attn_packed", shape], attention["sparse_attn_decode", shape]
        found[f"packed FlashMLA over bf16 rows, h{heads}"] = packed["same_run"]["flash_mla"] / plain["ours"]["device_s"]
    return found


def reached(family: Mapping[str, Any]) -> bool:
    """The goal: as fast as the harder peer in the mean, and nowhere below 0.9 of it."""
    hardest = family["hardest"]
    return bool(hardest["geomean"] >= GOAL_MEAN and hardest["least"] >= GOAL_LEAST)


def families(artifact: Mapping[str, Any]) -> str:
    lines = [
        "| family | over the fastest of this run | over the recorded peer, scaled | over the harder | least | goal |",
        "|---|---:|---:|---:|---|---|",
    ]
    for name, found in artifact["families"].items():
        chains = all(row["ratio_same_run"]["chain"] for row in of(artifact, name) if row["ratio_same_run"])
        same_run = "chains only" if chains else times(found["same_run"]["geomean"])
        hardest, goal = found["hardest"], "reached" if reached(found) else "**missed**"
        lines.append(
            f"| {TITLES[name]} | {same_run} | {times(found['recorded']['geomean'])} | {times(hardest['geomean'])} "
            f"| {times(hardest['least'])} at {hardest['least_shape']} | {goal} |"
        )
    return text_of(lines)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One row a shape: ours, the fastest other provider of the run, the recorded peer, the roofline.

    Rows that nothing but a chain stands against are the artifact's alone; where all do, so are the chains.
    """
    shown = [row for row in rows if row["recorded"] or not row["ratio_same_run"]["chain"]]
    chains = all(row["ratio_same_run"] is None or row["ratio_same_run"]["chain"] for row in shown)
    tensorwise = any(row["other_product"] for row in shown)
    heads = ["shape", "form", "ours, us"]
    heads += [] if chains else ["fastest of this run", "ratio"]
    heads += ["recorded, scaled", "ratio", *(["one scale a tensor"] if tensorwise else []), "roofline"]
    lines = [line(heads), f"|---|---|{'---:|' * (len(heads) - 2)}"]
    for row in shown:
        same_run, recorded = row["ratio_same_run"], row["recorded"]
        cells = [
            name_of(row),
            "two launches" if "+" in row["ours"]["way"] else row["ours"]["way"],
            us(row["ours"]["device_s"]) + (" †" if row["ours"].get("rounds") == 1 else ""),
        ]
        if not chains:
            cells.append(f"{same_run['peer']} {us(row['same_run'][same_run['peer']])}" if same_run else "")
            cells.append(aside(times(same_run["value"]), same_run["chain"]) if same_run else "")
        cells.append(f"{recorded['peer']} {us(recorded['scaled_s'])}" if recorded else "")
        not_counted = recorded and (was_again(row) or recorded["set_aside"])
        cells.append(aside(times(row["ratio_recorded"]), not_counted) if recorded else "")
        if tensorwise:
            cells.append(us(row["other_product"]["scaled_s"]) if row["other_product"] else "")
        lines.append(line([*cells, f"{100 * row['roofline']:.0f} %"]))
    return text_of(lines)


def line(cells: Sequence[str]) -> str:
    return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|"


def of(artifact: Mapping[str, Any], family: str) -> list[Mapping[str, Any]]:
    return [row for row in artifact["rows"] if row["family"] == family]


def aside(text: str, not_counted: object) -> str:
    """In brackets where the ratio counts in no verdict."""
    return f"({text.strip('*')})" if not_counted else text


def times(ratio: float) -> str:
    """A ratio, in bold below 1."""
    text = f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.1f}"
    return f"**{text}**" if float(text) < 1 else text


def us(time_s: float) -> str:
    """Microseconds, to four digits from 1000 on and to three below, one behind the point at most."""
    value = time_s * 1e6
    return f"{value:.0f}" if value >= 200 else f"{value:.1f}"


def text_of(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
