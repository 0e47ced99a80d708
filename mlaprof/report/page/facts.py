"""What every report ends with: the machine, the command, the study."""

from __future__ import annotations

import shlex

from mlaprof.machine import checks
from mlaprof.records import Manifest
from mlaprof.report.listing import environment_rows
from mlaprof.report.page.parts import Part, Section, Sheet, Words
from mlaprof.report.page.tables import fact_columns


def environment_section(manifest: Manifest) -> Section:
    """The machine and the software that the run was made on, and what on it speaks against a number."""
    environment = manifest.environment
    rows = [
        *environment_rows(environment),
        ("mlaprof version", manifest.mlaprof_version),
        ("kernel sources", f"SHA-256 {environment.kernel_source_sha256}"),
        *((f"GPU {number} uuid", gpu.uuid) for number, gpu in enumerate(environment.gpus)),
        ("run", f"{manifest.run_id}, {manifest.created_at}, schema {manifest.schema_version}"),
    ]
    parts: list[Part] = [Sheet("The machine and the software", fact_columns(rows))]
    for found in checks.warnings(environment, manifest.device):
        parts.append(Words(f"{found.what}: {found.why}; next: {found.next_step}", "warning"))
    return Section("environment", "Environment", tuple(parts))


def command_section(manifest: Manifest) -> Section:
    """The command as it was given, and the study that it resolved to."""
    verb = manifest.command[1] if manifest.command[1:2] in (("kernels",), ("tune",)) else "sweep"
    return Section(
        "command",
        "The exact command",
        (
            Words(shlex.join(manifest.command), "code"),
            Words(f"The study as it was resolved: `mlaprof {verb} study.yaml` runs it again.", "note"),
            Words(manifest.study_yaml.rstrip("\n"), "code"),
        ),
    )
