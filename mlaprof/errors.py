"""What a user can mend. Everything else is a programmer's ValueError or a failed Measurement.

MlaprofError
├── ConfigError        the study or an option is wrong                      exit 2
├── RunFileError       a run file is missing, foreign or unreadable         exit 2
├── MachineError       this machine cannot do what was asked, or differs    exit 4
└── ClusterError       the machines that measure for this one are gone      exit 4
"""

from __future__ import annotations


class MlaprofError(Exception):
    """One line for the user, with a remedy.

    where   file, file:line or option that is to blame; may be empty
    hint    what to do next; may be empty
    """

    exit_code = 2

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        remedy = f"; {self.hint}" if self.hint else ""
        # Parts of it may come from a file: no line breaks, nothing that steers a terminal.
        line = f"{place}{self.message}{remedy}"
        return "".join(each if each.isprintable() else " " if each.isspace() else "?" for each in line)


class ConfigError(MlaprofError):
    """The study file or a command-line option is wrong."""


class RunFileError(MlaprofError):
    """A run file is missing, is not one, or was written by a newer mlaprof."""


class MachineError(MlaprofError):
    """This machine cannot do what was asked, or differs from the one compared with."""

    exit_code = 4


class ClusterError(MlaprofError):
    """The cluster that measures cannot be reached, or not any more."""

    exit_code = 4
