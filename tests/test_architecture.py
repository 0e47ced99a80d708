"""The laws of the house, read from imports.

A rule takes {module: source} and returns its violations as sentences; each is held against the real tree and
against a tree with a planted violation.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import pytest

Sources = Mapping[str, str]

# A module takes the floor of its longest prefix here. Imports go down or stay on the floor.
FLOORS = {
    "mlaprof": 5,  # the package itself: its public face; no prefix for the modules inside
    "mlaprof.version": 0,
    "mlaprof.errors": 0,
    "mlaprof.faults": 0,
    "mlaprof.shapes": 0,
    "mlaprof.kernel_shapes": 0,
    "mlaprof.kernels": 0,
    "mlaprof.capture": 0,
    "mlaprof.measure": 0,
    "mlaprof.study": 1,
    "mlaprof.buckets": 1,
    "mlaprof.facts": 1,
    "mlaprof.records": 1,
    "mlaprof.traces": 1,
    "mlaprof.wire": 1,
    "mlaprof.checkpoint": 1,
    "mlaprof.runfile": 1,
    "mlaprof.kernel_choices": 1,
    "mlaprof.runlock": 1,
    "mlaprof.skips": 1,
    "mlaprof.config": 1,
    "mlaprof.layer": 1,
    "mlaprof.peers": 2,
    "mlaprof.cases": 2,
    "mlaprof.plan": 2,
    "mlaprof.noise_plan": 2,
    "mlaprof.kernel_plan": 2,
    "mlaprof.tuning": 2,
    "mlaprof.archive": 2,
    "mlaprof.sizing": 2,
    "mlaprof.store": 2,
    "mlaprof.runs": 2,
    "mlaprof.machine": 2,
    "mlaprof.analysis": 2,
    "mlaprof.verify": 2,
    "mlaprof.blame": 2,
    "mlaprof.engine": 2,
    "mlaprof.opening": 3,
    "mlaprof.sweep": 3,
    "mlaprof.confirm": 3,
    "mlaprof.merge": 3,
    "mlaprof.tune": 3,
    "mlaprof.trace": 3,
    "mlaprof.worker": 3,
    "mlaprof.drill": 3,
    "mlaprof.report": 3,
    "mlaprof.api": 4,
    "mlaprof.cli": 4,
    "mlaprof.__main__": 5,
}
ROOMS = ("mlaprof.layer", "mlaprof.capture", "mlaprof.measure")
SINGLE_KERNELS = ("mlaprof.cases", "mlaprof.peers")  # one kernel at a time, beside the layer
CHILD = ("mlaprof.worker", "mlaprof.drill", "mlaprof.verify", *ROOMS, *SINGLE_KERNELS)
DOOR = ("mlaprof.report", "mlaprof.cli")
PLAIN_KERNELS = ("mlaprof.kernels.tiles", "mlaprof.kernels.work")  # numbers about kernels, no tensors
MAY_SYNCHRONISE = ("mlaprof.measure", "mlaprof.capture", "mlaprof.worker", "mlaprof.verify")
HEAVY = ("torch", "triton")
DRAWERS = {"utils", "util", "common", "helpers", "helper", "base", "misc"}


def inside(module: str, *rooms: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def is_parent(module: str) -> bool:
    """Runs in the parent process: all but the worker's side. Of the kernels, only tiles."""
    if inside(module, "mlaprof.kernels"):
        return module == "mlaprof.kernels" or inside(module, *PLAIN_KERNELS)
    return not inside(module, *CHILD)


# Reading imports


@lru_cache(maxsize=512)
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def packages(sources: Sources) -> set[str]:
    return {module.rpartition(".")[0] for module in sources}


def nodes_in(node: ast.AST, *, types: bool) -> Iterator[ast.AST]:
    """Every node below; without types not what only a type checker reads."""
    for_types = isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING")
    for child in node.orelse if for_types and not types else ast.iter_child_nodes(node):
        yield child
        yield from nodes_in(child, types=types)


@lru_cache(maxsize=1024)  # the walk takes a hundred times longer than what rules do with what it finds
def import_nodes(source: str, *, types: bool) -> tuple[ast.Import | ast.ImportFrom, ...]:
    return tuple(
        node for node in nodes_in(parsed(source), types=types) if isinstance(node, ast.Import | ast.ImportFrom)
    )


def named_imports(module: str, sources: Sources, *, types: bool = True) -> Iterator[tuple[str, str]]:
    """(module, name) of every import, those inside functions too; `import x` has no name."""
    for node in import_nodes(sources[module], types=types):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        else:
            origin = node.module or ""
            if node.level:
                package = module if module in packages(sources) else module.rpartition(".")[0]
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*above, *([origin] if origin else [])])
            yield from ((origin, alias.name) for alias in node.names)


def imports(module: str, sources: Sources, *, types: bool = True) -> set[str]:
    """The modules that module imports, `from package import module` resolved to the module."""
    found = set()
    for origin, name in named_imports(module, sources, types=types):
        found.add(f"{origin}.{name}" if f"{origin}.{name}" in sources else origin)
    return found


def with_packages(modules: set[str]) -> set[str]:
    """modules and the packages that importing them executes."""
    parts = [module.split(".") for module in modules]
    return {".".join(names[:end]) for names in parts for end in range(1, len(names) + 1)}


def dotted(node: ast.expr) -> str:
    """`torch.cuda.synchronize` of the expression, or its last part where it hangs on something nameless."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


# The rules


def parent_reaches_torch(sources: Sources) -> list[str]:
    """Law 1: no module of the parent imports torch or triton, directly or through others."""
    found = []
    for start in filter(is_parent, sources):
        reached, waiting = {start: start}, [start]
        while waiting:
            module = waiting.pop()
            for target in sorted(with_packages(imports(module, sources))):
                if target in HEAVY:
                    found.append(f"{start} reaches {target} by {reached[module]}")
                elif target in sources and target not in reached:
                    reached[target] = f"{reached[module]} -> {target}"
                    waiting.append(target)
    return sorted(set(found))


def rooms_meet(sources: Sources) -> list[str]:
    """Law 2: layer, capture and measure do not import each other, and only the worker imports all three."""
    found = []
    for module in sources:
        seen = {room for room in ROOMS for target in imports(module, sources) if inside(target, room)}
        own = next((room for room in ROOMS if inside(module, room)), None)
        if own and seen - {own}:
            found.append(f"{module} imports {sorted(seen - {own})}")
        if len(seen) == len(ROOMS) and not inside(module, "mlaprof.worker"):
            found.append(f"{module} sees all three rooms")
    return found


def single_kernels_see_rooms(sources: Sources) -> list[str]:
    """A single kernel is timed without the layer and by whoever times it, so it knows neither."""
    return [
        f"{module} imports {target}"
        for module in sources
        if inside(module, *SINGLE_KERNELS)
        for target in sorted(imports(module, sources))
        if inside(target, *ROOMS)
    ]


def floor(module: str) -> int | None:
    prefixes = [prefix for prefix in FLOORS if inside(module, prefix) and (prefix != "mlaprof" or module == prefix)]
    return FLOORS[max(prefixes, key=len)] if prefixes else None


def arrows_up(sources: Sources) -> list[str]:
    """Every module has a floor, and imports nothing from a higher one."""
    found = []
    for module in sources:
        own = floor(module)
        if own is None:
            found.append(f"{module} has no floor: give it one in FLOORS")
            continue
        for target in imports(module, sources):
            above = floor(target)
            if above is not None and above > own:
                found.append(f"{module} (floor {own}) imports {target} (floor {above})")
    return found


def circles(sources: Sources) -> list[str]:
    """No module imports itself through others; what only a type checker reads is never run: no circle."""
    arrows = {module: imports(module, sources, types=False) & set(sources) - {module} for module in sources}
    found = []
    for start in arrows:
        reached, waiting = set(), list(arrows[start])
        while waiting:
            module = waiting.pop()
            if module not in reached:
                reached.add(module)
                waiting.extend(arrows[module])
        if start in reached:
            found.append(f"{start} imports itself through others")
    return found


def prints(sources: Sources) -> list[str]:
    """Only report and cli print."""
    spoken = ("print", "sys.stdout.write", "sys.stderr.write")
    return [
        f"{module}:{node.lineno} calls {dotted(node.func)}"
        for module, source in sources.items()
        if not inside(module, *DOOR)
        for node in ast.walk(parsed(source))
        if isinstance(node, ast.Call) and dotted(node.func) in spoken
    ]


def mentions(module: str, sources: Sources, origin: str, name: str) -> bool:
    """Uses origin.name, by its dotted path or imported by name."""
    if (origin, name) in named_imports(module, sources):
        return True
    nodes = ast.walk(parsed(sources[module]))
    return any(isinstance(node, ast.Attribute) and dotted(node) == f"{origin}.{name}" for node in nodes)


def autotunes(sources: Sources) -> list[str]:
    """What a report names is what ran: tiles are arguments, nowhere an autotune decorator."""
    return [module for module in sources if mentions(module, sources, "triton", "autotune")]


def synchronises(sources: Sources) -> list[str]:
    """torch.cuda.synchronize belongs to measuring and capturing; a layer that waits cannot be captured."""
    return [
        module
        for module in sources
        if not inside(module, *MAY_SYNCHRONISE) and mentions(module, sources, "torch.cuda", "synchronize")
    ]


def tiles_need_more_than_python(sources: Sources) -> list[str]:
    """YAML is checked and planned on a laptop: kernels.tiles and .work import the standard library and themselves."""
    return sorted(
        f"{module} -> {target}"
        for module in sources
        if inside(module, *PLAIN_KERNELS)
        for target in imports(module, sources)
        if target.split(".")[0] not in sys.stdlib_module_names and not inside(target, *PLAIN_KERNELS)
    )


def drawers(sources: Sources) -> list[str]:
    """A module is named after its subject."""
    return [module for module in sources if DRAWERS & set(module.split("."))]


RULES: list[Callable[[Sources], list[str]]] = [
    parent_reaches_torch,
    rooms_meet,
    single_kernels_see_rooms,
    arrows_up,
    circles,
    prints,
    autotunes,
    synchronises,
    tiles_need_more_than_python,
    drawers,
]


# The real tree


def read_sources(checkout: Path) -> dict[str, str]:
    found = {}
    for folder, folders, files in os.walk(checkout / "mlaprof", followlinks=True):  # kernels is a link
        folders[:] = [name for name in folders if name != "__pycache__"]
        for file in files:
            path = Path(folder, file)
            if path.suffix == ".py":
                names = path.relative_to(checkout).with_suffix("").parts
                found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path.read_text("utf-8")
    return found


@pytest.fixture(scope="module")
def sources(checkout: Path) -> dict[str, str]:
    return read_sources(checkout)


def test_the_tree_is_read_with_its_kernels(sources):
    """A rule over an empty tree would always hold."""
    assert {"mlaprof", "mlaprof.records", "mlaprof.measure.clock", "mlaprof.kernels.tiles"} <= set(sources)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_rule_is_broken(rule, sources):
    assert rule(sources) == []


def heavy_after_importing(modules: list[str], folder: Path) -> list[str]:
    """Which of torch and triton a fresh process holds once it has imported modules from folder."""
    code = f"import sys, {', '.join(modules)}; print(*[name for name in {HEAVY} if name in sys.modules])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_fresh_parent_process_holds_no_torch(sources, checkout):
    """Law 1 as the machine sees it: what dependencies import counts too."""
    modules = [module for module in sources if is_parent(module) and module != "mlaprof.__main__"]
    assert heavy_after_importing(modules, checkout) == []


# Planted violations


CLEAN = {
    "mlaprof": "",
    "mlaprof.errors": "",
    "mlaprof.kernels": "",
    "mlaprof.kernels.tiles": "from dataclasses import dataclass\nimport math",
    "mlaprof.kernels.topk": "import torch\nimport triton\nfrom mlaprof.kernels import tiles",
    "mlaprof.study": "from mlaprof.kernels.tiles import Dims\nfrom pydantic import BaseModel",
    "mlaprof.records": "from mlaprof.study import Mode",
    "mlaprof.layer": "",
    "mlaprof.layer.mla": "import torch\nfrom mlaprof.kernels.topk import topk\nfrom .rope import rotate",
    "mlaprof.layer.rope": "import torch\nfrom typing import TYPE_CHECKING\n"
    "if TYPE_CHECKING:\n    from mlaprof.layer.mla import MLA",
    "mlaprof.capture": "",
    "mlaprof.measure": "",
    "mlaprof.capture.runners": "import torch\ntorch.cuda.synchronize()",
    "mlaprof.measure.timing": "import torch\ntorch.cuda.synchronize()",
    "mlaprof.verify": "from mlaprof.layer import mla",
    "mlaprof.peers": "import torch",
    "mlaprof.cases": "from mlaprof import peers\nfrom mlaprof.kernels.topk import topk",
    "mlaprof.sweep": "from mlaprof import records\nimport subprocess",
    "mlaprof.worker": "from mlaprof.layer import mla\nfrom mlaprof.capture import runners\n"
    "from mlaprof.measure import timing\nfrom mlaprof.verify import gate",
    "mlaprof.worker.rig": "from mlaprof import capture, layer, measure",
    "mlaprof.report.console": "print('text')",
    "mlaprof.cli": "from mlaprof.report import console\nfrom mlaprof.sweep import sweep\nprint('text')",
    "mlaprof.__main__": "from mlaprof.cli import main",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_clean_tree_passes(rule):
    assert rule(CLEAN) == []


@pytest.mark.parametrize(
    ("rule", "module", "source"),
    [
        (parent_reaches_torch, "mlaprof.store", "import torch"),
        (parent_reaches_torch, "mlaprof.store", "def load():\n    import torch.cuda"),
        (parent_reaches_torch, "mlaprof.plan", "from triton.runtime import driver"),
        (parent_reaches_torch, "mlaprof.plan", "from mlaprof.kernels import tiles, topk"),
        (parent_reaches_torch, "mlaprof.sweep", "from mlaprof import worker"),
        (parent_reaches_torch, "mlaprof.kernels", "from .topk import topk"),
        (parent_reaches_torch, "mlaprof.kernels.tiles", "import triton"),
        (rooms_meet, "mlaprof.layer.mla", "from mlaprof.measure.clock import CpuClock"),
        (rooms_meet, "mlaprof.capture.runners", "from mlaprof import layer"),
        (rooms_meet, "mlaprof.measure.timing", "from ..capture.runners import Runner"),
        (rooms_meet, "mlaprof.layer.rope", "if TYPE_CHECKING:\n    from mlaprof.capture import runners"),
        (rooms_meet, "mlaprof.verify", CLEAN["mlaprof.worker"]),
        (single_kernels_see_rooms, "mlaprof.cases", "from mlaprof.layer import mla"),
        (single_kernels_see_rooms, "mlaprof.peers", "from mlaprof.measure.timing import time_rounds"),
        (arrows_up, "mlaprof.records", "from mlaprof.store import load"),
        (arrows_up, "mlaprof.layer.mla", "from mlaprof.cases import topk"),
        (arrows_up, "mlaprof.errors", "from .cli import main"),
        (arrows_up, "mlaprof.report.console", "import mlaprof.cli"),
        (arrows_up, "mlaprof.attic", ""),
        (circles, "mlaprof.layer.rope", "from mlaprof.layer import mla"),
        (
            circles,
            "mlaprof.layer.rope",
            "if TYPE_CHECKING:\n    pass\nelse:\n    from mlaprof.layer import mla",
        ),
        (circles, "mlaprof.study", "def late():\n    from mlaprof import records"),
        (prints, "mlaprof.sweep", "print('cell 1 of 3')"),
        (prints, "mlaprof.worker", "import sys\nsys.stdout.write('ready')"),
        (
            autotunes,
            "mlaprof.kernels.topk",
            "import triton\n@triton.autotune(configs=[], key=[])\ndef f(): ...",
        ),
        (autotunes, "mlaprof.kernels.topk", "from triton import autotune"),
        (synchronises, "mlaprof.layer.mla", "import torch\ntorch.cuda.synchronize()"),
        (synchronises, "mlaprof.kernels.topk", "from torch.cuda import synchronize as wait"),
        (tiles_need_more_than_python, "mlaprof.kernels.tiles", "import numpy"),
        (tiles_need_more_than_python, "mlaprof.kernels.tiles", "from mlaprof.errors import ConfigError"),
        (drawers, "mlaprof.layer.utils", ""),
        (drawers, "mlaprof.common.shapes", ""),
    ],
)
def test_a_planted_violation_is_found(rule, module, source):
    """A rule that cannot fail holds nothing."""
    assert rule({**CLEAN, module: source}) != []


def test_a_fresh_process_that_holds_torch_is_found(tmp_path):
    """A stand-in torch, imported by a dependency, that no reading of our own imports would show."""
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "dependency.py").write_text("import torch")
    (tmp_path / "parent.py").write_text("import dependency")
    assert heavy_after_importing(["parent"], tmp_path) == ["torch"]
