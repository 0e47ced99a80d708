"""`--engine dask`: the options of a sweep on a Dask cluster, and the cluster that they name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from enum import StrEnum
from typing import Annotated

import typer

from mlaprof.cli.door import err
from mlaprof.engine.members import GPU, Members, connect
from mlaprof.errors import ConfigError
from mlaprof.report.lines import print_line


class EngineChoice(StrEnum):
    local = "local"
    dask = "dask"


EngineOption = Annotated[
    EngineChoice, typer.Option(help="Where jobs run: on this machine, or on the workers of a Dask cluster.")
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(help="With --engine dask: the scheduler's address, tcp://HOST:8786, or its scheduler file."),
]
GpuKindOption = Annotated[
    str | None, typer.Option(help="With --engine dask: only workers with the resource GPU:KIND, e.g. H100.")
]


@contextmanager
def members_of(
    engine: EngineChoice, scheduler: str | None, gpu_kind: str | None, gpus: str | None
) -> Iterator[Members | None]:
    """The members of the Dask cluster that the options name, None where they name none.

    Raises ConfigError and ClusterError.
    """
    if engine is EngineChoice.local:
        for name, given in (("--scheduler", scheduler), ("--gpu-kind", gpu_kind)):
            if given is not None:
                raise ConfigError("is of a Dask cluster", where=name, hint="add --engine dask, or leave it out")
        yield None
        return
    if gpus is not None:
        raise ConfigError("is of this machine", where="--gpus", hint="leave it out: each Dask worker has its own GPU")
    needs = {GPU: 1, **({f"{GPU}:{gpu_kind}": 1} if gpu_kind else {})}
    with closing(connect(scheduler)) as client:
        yield Members(client, needs, tell=lambda line: print_line(line, err))
