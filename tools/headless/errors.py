"""The errors of the command line; each class carries the exit code that documents it."""

from __future__ import annotations


class CommandError(Exception):
    """Ends the command with `exit_code`; the message is what the user reads."""

    exit_code = 3


class WorkflowError(CommandError):
    """The workflow file, its values or the command line are wrong; nothing was run."""

    exit_code = 2


class RunError(CommandError):
    """A node failed, or the run took longer than allowed."""

    exit_code = 3


class ServerError(CommandError):
    """The ComfyUI server cannot be reached or does not answer as ComfyUI does."""

    exit_code = 4


class Cancelled(CommandError):  # noqa: N818 - not an error, the user's wish
    """The user pressed Ctrl-C."""

    exit_code = 130
