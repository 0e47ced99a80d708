"""What engines capture where nobody says otherwise, and how each is told. Facts; sources in docs/buckets.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Engine = Literal["tensorrt-llm", "vllm", "sglang"]
ENGINES: tuple[Engine, ...] = ("tensorrt-llm", "vllm", "sglang")

SGLANG_MLA_MOST = 2048  # tokens; of models without MLA it is the chunk of a prefill
VLLM_MOST = 512  # or twice max_num_seqs, where that is less


@dataclass(frozen=True)
class Ladder:
    """Sizes from `first` to `last` in steps of `step`, both ends included."""

    first: int
    last: int
    step: int

    @property
    def sizes(self) -> range:
        return range(self.first, self.last + 1, self.step)


_LADDERS: dict[Engine, tuple[Ladder, ...]] = {
    "tensorrt-llm": (Ladder(256, 3072, 256),),
    "vllm": (Ladder(8, 248, 8), Ladder(256, VLLM_MOST, 16)),
    "sglang": (
        Ladder(4, 32, 4),
        Ladder(48, 256, 16),
        Ladder(288, 512, 32),
        Ladder(576, 1024, 64),
        Ladder(1280, SGLANG_MLA_MOST, 256),
    ),
}
_SINGLE: dict[Engine, tuple[int, ...]] = {
    "tensorrt-llm": (1, 2, 4, 8, 16, 32, 64, 128),
    "vllm": (1, 2, 4),
    "sglang": (),
}


def default_sizes(engine: Engine) -> tuple[int, ...]:
    """The engine's own list for an MLA model, ascending, in tokens."""
    return (*_SINGLE[engine], *(size for ladder in _LADDERS[engine] for size in ladder.sizes))


def naive_lists(largest: int) -> dict[str, tuple[int, ...]]:
    """Lists that people write by hand, up to `largest` tokens."""
    return {
        "powers of two": tuple(2**power for power in range(largest.bit_length()) if 2**power <= largest),
        "every 256": tuple(range(256, largest + 1, 256)) or (largest,),
        "largest alone": (largest,),
    }


def config_text(engine: Engine, sizes: Sequence[int], *, breakable: bool = False) -> str:
    """Lines that make the engine capture these sizes, ready to paste."""
    listed = json.dumps(list(sizes))
    if engine == "tensorrt-llm":
        backend = "breakable" if breakable else "piecewise"
        return (
            f"# config.yml\nprefill_cuda_graph_backend: {backend}\nprefill_capture_num_tokens: {listed}\n"
            "# releases before these keys:\n"
            "# torch_compile_config:\n#   enable_piecewise_cuda_graph: true\n"
            f"#   capture_num_tokens: {listed}"
        )
    if engine == "vllm":
        return f"--compilation-config '{json.dumps({'cudagraph_capture_sizes': list(sizes)})}'"
    words = " ".join(map(str, sizes))
    most = sizes[-1] if sizes else 0
    return (
        f"--piecewise-cuda-graph-max-tokens {most} --piecewise-cuda-graph-tokens {words}\n"
        f"# newer releases:\n# --cuda-graph-max-bs-prefill {most} --cuda-graph-bs-prefill {words}"
    )
