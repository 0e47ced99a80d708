"""How soon a search is near the optimum, told by replaying it against spaces that were measured whole.

python benchmarks/tuning_replay.py FOLDER     reads FOLDER/space-*.json, writes FOLDER/replay.json and replay.png,
                                              prints the table of docs/tuning.md

A search sees what the first few samples of a configuration said; as in `mlaprof tune` the best of those it saw are then
measured again, and it is judged by the best time that is known of the one it takes. An
evaluation is a launch: what the compiler alone rules out is free. Both hold for every search alike.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from tuning_space import launched  # noqa: E402

from mlaprof.tuning.finals import MOST as FINALISTS  # noqa: E402
from mlaprof.tuning.search import Space, Values, ask  # noqa: E402

BUDGETS = (16, 32, 64, 128)
SEEDS = 50
MOST_PROPOSALS = 1000  # in a replay: what the compiler rules out, and repetitions, are free but not endless
AHEAD = 16  # configurations under way at a time on a host of 16 cores: the search does not know of them yet


@dataclass(frozen=True)
class Whole:
    """A space with every time known."""

    document: Mapping[str, Any]
    space: Space
    seen_s: Mapping[Values, float]  # of those that ran
    device_s: Mapping[Values, float]
    launches: frozenset[Values]
    seeds: tuple[Values, ...]

    @property
    def optimum_s(self) -> float:
        return min(self.device_s.values())


Replay = Callable[[Whole, int], Iterator[Values]]
"""The configurations that a search asks for, in its order."""


def read(path: Path) -> Whole:
    """A space file. Raises ValueError on one that is not complete: its optimum is not known."""
    found = json.loads(path.read_text())
    if not found["complete"]:
        raise ValueError(f"{path}: expected every configuration, got {len(found['rows'])} of {found['legal']}")
    rows = {tuple(row["values"]): row for row in found["rows"]}
    ran = {values: row for values, row in rows.items() if "seen_s" in row}
    return Whole(
        document=found,
        space=Space.of(sorted(rows)),
        seen_s={values: row["seen_s"] for values, row in ran.items()},
        device_s={values: row["device_s"] for values, row in ran.items()},
        launches=frozenset(values for values, row in rows.items() if launched(row)),
        seeds=tuple(tuple(each) for each in found["seeds"]),
    )


def at_random(whole: Whole, seed: int) -> Iterator[Values]:
    """Any order."""
    draw = np.random.default_rng(seed)
    yield from (whole.space.configurations[place] for place in draw.permutation(len(whole.space.configurations)))


def ours(ahead: int, *, seeded: bool = True) -> Replay:
    """mlaprof's own, so many configurations under way; without its seeds it has to find what the launchers know."""

    def replay(whole: Whole, seed: int) -> Iterator[Values]:
        seeds = whole.seeds if seeded else ()
        told: dict[Values, float | None] = {}
        waiting: list[Values] = []
        while True:
            while len(waiting) < ahead:
                found = ask(whole.space, told, pending=waiting, seeds=seeds, seed=seed, exhaustive=0)
                if found is None:
                    break
                waiting.append(found.values)
            if not waiting:
                return
            values = waiting.pop(0)
            told[values] = whole.seen_s.get(values)
            yield values

    return replay


def optuna_sampler(whole: Whole, seed: int) -> Iterator[Values]:
    """Optuna's default sampler (TPE): the form first, then the fields it has, as categories; the seeds enqueued.

    What is illegal or does not run is told as slow as ten times the slowest: left out, it would be asked for again.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    every = whole.space.configurations
    forms = sorted({values[0] for values in every})
    fields = {
        form: [sorted({values[at] for values in every if values[0] == form}) for at in range(1, len(every[0]))]
        for form in forms
    }
    worst = float(np.log(10 * max(whole.seen_s.values())))
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    for values in whole.seeds:
        names = {f"{values[0]}.{at}": value for at, value in enumerate(values[1:]) if len(fields[values[0]][at]) > 1}
        study.enqueue_trial({"form": values[0], **names})
    for _ in range(MOST_PROPOSALS):
        trial = study.ask()
        form = trial.suggest_categorical("form", forms)
        rest = (
            trial.suggest_categorical(f"{form}.{at}", found) if len(found) > 1 else found[0]
            for at, found in enumerate(fields[form])
        )
        values = (form, *rest)
        seconds = whole.seen_s.get(values)
        study.tell(trial, worst if seconds is None else float(np.log(seconds)))
        yield values


def searches() -> dict[str, Replay]:
    """Name -> search; Optuna's only where it is installed."""
    found: dict[str, Replay] = {
        "random": at_random,
        "mlaprof": ours(1),
        f"mlaprof, {AHEAD} under way": ours(AHEAD),
        f"mlaprof, {AHEAD} ahead, no seeds": ours(AHEAD, seeded=False),
    }
    try:
        import optuna
    except ImportError:
        return found
    return {**found, f"Optuna {optuna.__version__} TPE": optuna_sampler}


def fractions(whole: Whole, replay: Replay, seed: int, budgets: Sequence[int] = BUDGETS) -> list[float]:
    """Of the optimum, after each number of launches; 0 where nothing ran yet. Asking again for the same is free."""
    done: set[Values] = set()
    seen: dict[Values, float] = {}
    found: dict[int, float] = {}
    for proposals, values in enumerate(replay(whole, seed), 1):
        if values in whole.launches and values not in done:
            done.add(values)
            if values in whole.seen_s:
                seen[values] = whole.seen_s[values]
            if len(done) in budgets:
                found[len(done)] = _chosen(whole, seen)
        if len(done) >= max(budgets) or proposals >= MOST_PROPOSALS:
            break
    last = _chosen(whole, seen)
    return [found.get(budget, last) for budget in budgets]


def _chosen(whole: Whole, seen: Mapping[Values, float]) -> float:
    """The fraction of the optimum that a search ends with: the first of those seen, measured again, the best taken."""
    first = sorted(seen, key=lambda values: seen[values])[:FINALISTS]
    return whole.optimum_s / min(whole.device_s[values] for values in first) if first else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    given = parser.parse_args()
    paths = sorted(given.folder.glob("space-*.json"))
    if not paths:
        raise SystemExit(f"{given.folder} holds no space-*.json; make one with benchmarks/tuning_space.py")
    document: dict[str, Any] = {"seeds": given.seeds, "budgets": list(BUDGETS), "spaces": {}}
    for path in paths:
        whole = read(path)
        every = {
            name: [fractions(whole, replay, seed) for seed in range(given.seeds)] for name, replay in searches().items()
        }
        document["spaces"][path.stem] = {
            **{name: whole.document[name] for name in ("kernel", "shape", "launch", "processor", "emulated", "legal")},
            "optimum_s": whole.optimum_s,
            "default_s": whole.device_s.get(whole.seeds[0]),
            "fraction_of_optimum": {name: quantiles(rows) for name, rows in every.items()},
        }
    (given.folder / "replay.json").write_text(json.dumps(document, indent=1) + "\n")
    draw(document, given.folder / "replay.png")
    print(table(document))
    return 0


def quantiles(rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Over the seeds, an entry a budget."""
    found = np.array(rows)
    names = {"median": 50, "p10": 10, "least": 0}
    return {name: [float(each) for each in np.percentile(found, at, axis=0)] for name, at in names.items()}


def table(document: Mapping[str, Any]) -> str:
    """Markdown: the median over the seeds, the worst tenth in brackets."""
    budgets = document["budgets"]
    lines = [
        f"| space | search | {' | '.join(map(str, budgets))} |",
        f"|---|---|{'---:|' * len(budgets)}",
    ]
    for found in document["spaces"].values():
        sizes = ", ".join(f"{axis} {size}" for axis, size in found["shape"].items())
        place = f"{'EMULATED ' if found['emulated'] else ''}{found['kernel']} ({sizes}), {found['legal']} legal"
        for name, each in found["fraction_of_optimum"].items():
            cells = [f"{median:.3f} ({p10:.3f})" for median, p10 in zip(each["median"], each["p10"], strict=True)]
            lines.append(f"| {place} | {name} | {' | '.join(cells)} |")
            place = ""
    return "\n".join(lines)


def draw(document: Mapping[str, Any], path: Path) -> None:
    """A panel a space: median over the seeds, down to the worst tenth."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    spaces = list(document["spaces"].values())
    figure = Figure(figsize=(5.2 * len(spaces), 4.4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    colours = ("#888888", "#0072B2", "#56B4E9", "#009E73", "#E69F00")
    for axes, found in zip(figure.subplots(1, len(spaces), squeeze=False).flat, spaces, strict=True):
        for colour, (name, each) in zip(colours, found["fraction_of_optimum"].items(), strict=False):
            axes.plot(document["budgets"], each["median"], "o-", color=colour, label=name)
            axes.fill_between(document["budgets"], each["p10"], each["median"], color=colour, alpha=0.15, linewidth=0)
        axes.axhline(0.99, color="#444444", linewidth=0.8, linestyle="--")
        axes.set_xscale("log", base=2)
        axes.set_xticks(document["budgets"], list(map(str, document["budgets"])))
        axes.set_xlabel("configurations launched")
        stamp = "EMULATED " if found["emulated"] else ""
        axes.set_title(f"{stamp}{found['kernel']}, {found['legal']} legal, {found['processor']}", fontsize=9)
    figure.axes[0].set_ylabel(f"fraction of the optimum, {document['seeds']} seeds")
    figure.axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    sys.exit(main())
