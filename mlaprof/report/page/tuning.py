"""The sections of a run of tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mlaprof.records import Manifest
from mlaprof.report.columns import Column
from mlaprof.report.figures.tuning import course_stem
from mlaprof.report.page.facts import command_section, environment_section
from mlaprof.report.page.parts import Page, Part, Picture, Section, Sheet, Words
from mlaprof.report.page.verdict import EMULATED, interval
from mlaprof.report.tuning import LEGEND, finalist_columns, target_lines
from mlaprof.tuning.summary import TargetSummary

NO_LAYER = (
    "This run tunes single kernels: no step, no capture, no ledger. "
    "`mlaprof sweep configs/v3.2-tp8-decode.yaml` measures the layer with what was tuned."
)


def tuning_verdict(summaries: Sequence[TargetSummary]) -> str:
    """One sentence: how many targets were tuned, and the largest confirmed gain."""
    stamp = "EMULATED: " if any(each.decision.emulated for each in summaries) else ""
    tuned = [each for each in summaries if each.decision.verdict == "tuned"]
    count = f"{len(tuned)} of {len(summaries)} target{'s' * (len(summaries) != 1)}"
    gains = [(each.decision.gain, each) for each in tuned if each.decision.gain]
    if not gains:
        return f"{stamp}{count} tuned: no configuration was confirmed to be faster than the launcher's own choice."
    gain, most = max(gains, key=lambda pair: pair[0].median)
    return f"{stamp}{count} tuned; the most is {most.search.target.kernel}, {interval(gain)} than the default."


def tuning_page(summaries: Sequence[TargetSummary], manifest: Manifest, pictures: Mapping[str, Picture]) -> Page:
    """The page of a run of tuning."""
    processor = manifest.environment.processor(manifest.device)
    emulated = any(each.decision.emulated for each in summaries)
    return Page(
        title=f"{manifest.run_id} on {processor}",
        verdict=tuning_verdict(summaries),
        facts=(f"{processor}, run {manifest.run_id}, {manifest.created_at}",),
        sections=(
            Section("tiles", "Tiles and tuning", tuple(_targets(summaries, pictures))),
            Section("layer", "The layer around them", (Words(NO_LAYER, "missing"),)),
            environment_section(manifest),
            command_section(manifest),
            Section("failures", "Failed and skipped configurations", tuple(_failures(summaries))),
        ),
        stamp=EMULATED if emulated else "",
    )


def _targets(summaries: Sequence[TargetSummary], pictures: Mapping[str, Picture]) -> Iterator[Part]:
    for number, summary in enumerate(summaries):
        yield Words(f"{summary.search.label}: {target_lines(summary)[0]}")
        picture = pictures.get(course_stem(number, summary))
        if picture is not None:
            yield picture
        if summary.decision.finalists:
            yield Sheet(f"Finalists of {summary.search.label}", finalist_columns(summary.decision), LEGEND)
        for line in target_lines(summary)[1:]:
            yield Words(line, "note")


def _failures(summaries: Sequence[TargetSummary]) -> Iterator[Part]:
    rows = [(each.search.label, kind, count) for each in summaries for kind, count in each.failures.items()]
    if not rows:
        yield Words("None: every configuration that was tried has a time of its own.")
        return
    yield Sheet(
        "Configurations without a time of their own, by reason; summary.csv names each",
        [
            Column("target", 0, [label for label, _, _ in rows], right=False),
            Column("reason", 0, [kind for _, kind, _ in rows], right=False),
            Column("configurations", 0, [str(count) for _, _, count in rows]),
        ],
    )
