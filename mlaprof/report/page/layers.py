"""The sections of a run of the layer, in the order in which a reader asks; what is missing says how to get it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlaprof.analysis.capture import capture_cost_s
from mlaprof.analysis.cells import Summary
from mlaprof.analysis.compare import Comparison
from mlaprof.analysis.depth import full_depth, measured_layers
from mlaprof.analysis.groups import Group, groups
from mlaprof.analysis.headline import headlines
from mlaprof.analysis.strips import reach, strips
from mlaprof.records import Run
from mlaprof.report import sentences
from mlaprof.report.capture_tables import (
    BOUNDARY_TITLE,
    BREAKABLE_TITLE,
    CAPTURE_TITLE,
    LEDGER_TITLE,
    boundary_columns,
    breakable_columns,
    capture_columns,
    ledger_columns,
)
from mlaprof.report.cells_table import cell_columns, legend
from mlaprof.report.clocks_table import clocks_columns, clocks_remarks, clocks_title
from mlaprof.report.columns import Column
from mlaprof.report.comparison import delta_columns, delta_reasons, surroundings, tally
from mlaprof.report.figures.write import stem_of
from mlaprof.report.page.facts import command_section, environment_section
from mlaprof.report.page.parts import Page, Part, Picture, Section, Sheet, Words
from mlaprof.report.page.tables import depth_columns, mean_columns, moved_columns, pay_columns, trouble_columns
from mlaprof.report.page.verdict import EMULATED, few_samples, headline_sentence, verdict
from mlaprof.report.units import percent, seconds
from mlaprof.shapes import MODEL_LAYERS


@dataclass(frozen=True)
class Subject:
    """Everything that a page of a layer run is about. layers: of the whole model; None where nobody knows."""

    run: Run
    summary: Summary
    pictures: Mapping[str, Picture]  # by their stems, as far as the run has data for them
    comparison: Comparison | None = None
    layers: int | None = None

    @property
    def groups(self) -> tuple[Group, ...]:
        return groups(self.summary)

    def picture(self, name: str, group: Group) -> Iterator[Part]:
        """The figure of this name about the group, where the run has data for it."""
        found = self.pictures.get(stem_of(name, group))
        if found is not None:
            yield found


def layer_page(subject: Subject) -> Page:
    """The page of a run of the layer, beside a base run where there is one."""
    summary = subject.summary
    return Page(
        title=f"{summary.run_id} on {summary.processor}",
        verdict=verdict(summary, subject.comparison),
        facts=tuple(_facts(subject)),
        sections=tuple(_sections(subject)),
        stamp=EMULATED if summary.emulated else "",
    )


def _facts(subject: Subject) -> Iterator[str]:
    summary = subject.summary
    yield f"{sentences.processor(summary)}, run {summary.run_id}, {summary.created_at}"
    yield sentences.conditions(summary, summary.cells)
    if max((cell.processes for cell in summary.cells), default=0) == 1:
        yield "one process a cell: what fresh processes differ by is in no interval; sweep with --rigorous to have it"
    counts = {each: sum(cell.outcome == each for cell in summary.cells) for each in ("ok", "incorrect", "failed")}
    yield f"{len(summary.cells)} cells: {', '.join(f'{count} {name}' for name, count in counts.items())}"


def _sections(subject: Subject) -> Iterator[Section]:
    if subject.comparison is not None:
        yield _against(subject.comparison)
    yield Section("verdict", "The verdict, mode by mode", tuple(_verdict(subject)))
    for anchor, title, parts, lacking in (
        ("budget", "Where the time goes", _budget, MISSING_BUDGET),
        ("split", "What the split moved", _moved, MISSING_COUNTS),
        ("latency", "Latency and speed-up over tokens", _latency, MISSING_TIMES),
        ("memory", "Memory ledger", _memory, MISSING_MEMORY),
        ("capture", "Cost of capture, and when it pays", _capture, MISSING_CAPTURE),
        ("tiles", "Tiles and tuning", _tiles, MISSING_TILES),
    ):
        yield Section(anchor, title, tuple(_of_groups(subject, parts)) or (Words(lacking, "missing"),))
    yield Section("roofline", "Roofline of each kernel", (Words(MISSING_ROOFLINE, "missing"),))
    yield Section("depth", "Extrapolated to the whole model", tuple(_depth(subject)))
    yield Section("cells", "Every cell, with its raw samples", tuple(_cells(subject)))
    yield environment_section(subject.run.manifest)
    yield command_section(subject.run.manifest)
    yield Section("failures", "Failed and skipped cells", tuple(_troubles(subject.summary)))


MISSING_BUDGET = (
    "No step in service was timed on a GPU in this run. Get it with `mlaprof sweep study.yaml --device cuda` of this "
    "version; bursts of steps are timed in every cell."
)
MISSING_COUNTS = "Nothing was counted in this run. Get it with `mlaprof sweep study.yaml --set measure.counts=true`."
MISSING_TIMES = "No cell was timed in this run. Failed cells stand below with their reasons; mend them and sweep again."
MISSING_MEMORY = "No memory was measured in this run. Get it with `mlaprof sweep study.yaml --set measure.memory=true`."
MISSING_CAPTURE = (
    "No cost of capture was measured in this run. Get it with "
    "`mlaprof sweep study.yaml --device cuda --set measure.memory=true`."
)
MISSING_TILES = (
    "This run compares no tiles. `mlaprof sweep configs/v3.2-tp8-tiles.yaml` gives the heat map, "
    "`mlaprof tune configs/tune-v3.2.yaml` and `mlaprof report` of that run the course of a search."
)
MISSING_ROOFLINE = (
    "This run times whole steps, no single kernels. `mlaprof kernels configs/kernels.yaml` measures each beside the "
    "chip's own ceilings; `mlaprof report` of that run draws the roofline."
)
DEPTH = (
    "Assumption: every layer of the model costs what the {measured} measured here cost on average, what a step costs "
    "once included; {layers} layers are {factor:.4g} times the measured step. It is the attention of one rank: no MLP "
    "or experts, no communication, no embedding, no sampling. A graph over the whole step is launched once however "
    "deep the model, so the host's part of `full` is overstated. Savings are of the baseline's step by the speed-up."
)


def _against(comparison: Comparison) -> Section:
    parts: list[Part] = [Words(tally(comparison)), *(Words(line, "note") for line in surroundings(comparison))]
    parts.append(Sheet("Change of device time, cell by cell", delta_columns(comparison)))
    parts += [Words(line, "note") for line in delta_reasons(comparison)]
    return Section("against", "Against the base run", tuple(parts))


def _verdict(subject: Subject) -> Iterator[Part]:
    summary = subject.summary
    told = headlines(summary)
    for found in told if subject.comparison else told[1:]:
        yield Words(headline_sentence(found, summary))
    for warning in filter(None, map(few_samples, told)):
        yield Words(warning, "warning")
    for group in subject.groups:
        columns = mean_columns(group, summary.floor)
        if columns:
            yield Sheet(f"Speed-up over the baseline, geometric mean of the token counts: {_place(group)}", columns)
    yield Words(
        "In service: a step behind a step, host and device at work at once; where that was not timed, the longer of "
        "submit and device time. ~ marks what may be no difference.",
        "note",
    )
    for each in summary.findings:
        yield Words(sentences.finding(each, summary), "warning" if sentences.heading(each) == "warning" else "note")


def _of_groups(subject: Subject, parts: Callable[[Subject, Group], Iterator[Part]]) -> Iterator[Part]:
    for group in subject.groups:
        yield from parts(subject, group)


def _budget(subject: Subject, group: Group) -> Iterator[Part]:
    columns = clocks_columns(group.cells, every_row=True)
    if columns:
        yield from subject.picture("budget", group)
        yield Sheet(f"{clocks_title(group.cells)}: {_place(group)}", columns, " ".join(clocks_remarks(group.cells)))


def _moved(subject: Subject, group: Group) -> Iterator[Part]:
    columns = moved_columns(group.cells)
    if columns:
        yield from subject.picture("counts", group)
        note = "of one step, counted in a profiled pass that is not timed; ≥ a lower bound, as counts were incomplete"
        yield Sheet(f"What a step asks of the driver: {_place(group)}", columns, note)
    yield from _sheet(BREAKABLE_TITLE, group, breakable_columns(group, floor=subject.summary.floor))
    yield from _sheet(BOUNDARY_TITLE, group, boundary_columns(group.boundary_prices, floor=subject.summary.floor))
    for sentence in sentences.unpriced(group.boundary_prices):
        yield Words(sentence, "note")


def _latency(subject: Subject, group: Group) -> Iterator[Part]:
    yield from subject.picture("latency", group)
    yield from subject.picture("speedup", group)


def _memory(subject: Subject, group: Group) -> Iterator[Part]:
    yield from subject.picture("memory", group)
    yield from _sheet(LEDGER_TITLE, group, ledger_columns(group.ledgers))
    for sentence in sentences.residuals(group.ledgers):
        yield Words(sentence, "warning")


def _capture(subject: Subject, group: Group) -> Iterator[Part]:
    yield from subject.picture("capture-cost", group)
    paid = [cell for cell in group.cells if cell.break_even]
    if paid:
        costs = [cost for cell in paid if (cost := capture_cost_s(cell.graph)) is not None]
        told = f"; those captures took {seconds(min(costs))} to {seconds(max(costs))}" if costs else ""
        note = f"(capture + instantiation + first replay) over what each replay saves{told}"
        yield Sheet(f"Replays until capture is paid: {_place(group)}", pay_columns(group.cells), note)
    yield from _sheet(CAPTURE_TITLE, group, capture_columns(group.ledgers))


def _tiles(subject: Subject, group: Group) -> Iterator[Part]:
    yield from subject.picture("tiles", group)


def _depth(subject: Subject) -> Iterator[Part]:
    measured = measured_layers(subject.run.manifest.study_yaml)
    for group in subject.groups:
        layers = subject.layers or MODEL_LAYERS.get(group.preset)
        if layers is None or measured is None:
            yield Words(
                f"How many layers the model of {group.preset} has is not known here. "
                "`mlaprof report RUN --layers N` extrapolates to N.",
                "missing",
            )
            continue
        deep = {each.cell.key: each for each in full_depth(subject.summary, measured=measured, layers=layers)}
        columns = depth_columns([deep[cell.key] for cell in group.cells if cell.key in deep])
        if columns:
            yield Words(DEPTH.format(measured=measured, layers=layers, factor=layers / measured))
            yield Sheet(f"Attention of all {layers} layers, in service: {_place(group)}", columns)
        else:
            yield Words(f"Nothing was timed on a GPU in {_place(group)}: nothing to extrapolate from.", "missing")


def _cells(subject: Subject) -> Iterator[Part]:
    found = strips(subject.run)
    far = reach(found)
    for group in subject.groups:
        # The means have a table of their own; here every row is a cell, so that sorting keeps it one.
        columns = cell_columns(group.cells, (), floor=subject.summary.floor, every_row=True)
        note = (
            f"samples: every device time as a dot, a row a process, from {percent(far)} below the cell's median to "
            f"{percent(far)} above it; what lies beyond stands at the edge"
        )
        remark = legend(group, subject.summary.floor)
        yield Sheet(
            f"{_place(group)}; {sentences.conditions(subject.summary, group.cells)}",
            columns,
            f"{remark}; {note}" if remark else note,
            strips=[found.get(cell.key) for cell in group.cells],
            strips_after="±CI",
            reach=far,
        )


def _troubles(summary: Summary) -> Iterator[Part]:
    columns = trouble_columns(summary)
    if columns:
        yield Sheet("Cells without a time", columns)
    else:
        yield Words("None: every planned cell was measured and has its time.")
    for outcome, sentence in sentences.troubles(summary):
        if outcome is None:
            yield Words(sentence, "note")


def _sheet(title: str, group: Group, columns: Sequence[Column]) -> Iterator[Part]:
    if columns:
        yield Sheet(f"{title}: {_place(group)}", columns)


def _place(group: Group) -> str:
    return f"{group.preset} {sentences.placed(group.phase, group.context_len)}"
