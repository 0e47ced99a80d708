"""Lists of capture sizes beside one another, as the tables of docs/buckets.md."""

from __future__ import annotations

from typing import Any


def table(found: dict[str, Any]) -> str:
    """A row a trace and engine, in Markdown; memory and steps of lists as measured where they were, else predicted.

    An asterisk where the best list took more memory than the default, for all that was predicted.
    """
    lines = [
        "| trace | default of | sizes | MiB | step ms | best at its memory: sizes | MiB | step ms | default / best, "
        "predicted | measured |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    ratios = {(each["trace"], each["engine"]): each for each in found["default_over_ours"]}
    for default, ours in zip(found["rows"][::2], found["rows"][1::2], strict=True):
        ratio = ratios[default["trace"], default["engine"]]
        seen = ratio["measured"]
        above = "*" if taken_bytes(ours) > taken_bytes(default) else ""
        cells = [
            default["trace"],
            default["engine"],
            *list_cells(default),
            *list_cells(ours, above),
            f"{ratio['predicted']:.3f}x",
            f"{seen['median']:.3f}x [{seen['ci_low']:.3f}, {seen['ci_high']:.3f}]" if seen else "not yet",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def list_cells(row: dict[str, Any], mark: str = "") -> tuple[str, str, str]:
    predicted, seen = row["predicted"], row["measured"]
    step_s = seen["steps_s"]["median"] if seen else predicted["step_s"]
    return f"{len(predicted['sizes'])}", f"{taken_bytes(row) / 2**20:.0f}{mark}", f"{1e3 * step_s:.3f}"


def taken_bytes(row: dict[str, Any]) -> int:
    seen = row["measured"]
    return int(seen["pool_bytes"] + seen["driver_bytes"] if seen else row["predicted"]["memory_bytes"])


def filled(page: str, clocks: dict[str, Any]) -> str:
    """The page with its tables made anew, each between its two marks."""
    for clock, found in clocks.items():
        begin, end = f"<!-- buckets {clock} -->\n", f"<!-- /buckets {clock} -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}{table(found)}\n{end}{after}"
    return page
