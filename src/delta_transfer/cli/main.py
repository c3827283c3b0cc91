"""Entry point of delta-transfer: commands, exit codes and error messages."""

import io
import logging
import sys
from collections.abc import Sequence

from delta_transfer.cli import launcher
from delta_transfer.cli.commands import COMMANDS, find_command
from delta_transfer.cli.terminal import Formatter, ending_at_sigterm, flush_output
from delta_transfer.errors import ConfigError, UserError, as_flags
from delta_transfer.utils.diagnostics import explain, message

_log = logging.getLogger("delta_transfer")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0 for success; 2 for an error that the user can fix (one message); 1 for
        anything else, with a traceback unless the user interrupted it.
    """
    launcher.stop_if_over()
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter())
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for file names that are not valid text
    try:
        try:
            # The launcher stops the remaining processes with SIGTERM before a restart.
            with ending_at_sigterm(silently=launcher.is_launched()):
                _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            flush_output()
    except UserError as error:
        return _end(2, f"error: {as_flags(message(error))}")
    except KeyboardInterrupt as stop:
        return _end(1, as_flags(str(stop)) or "interrupted")
    except BrokenPipeError:
        return 1  # the reader, such as head, has closed the pipe
    except Exception as error:
        explained = explain(error)
        if explained is not None:
            return _end(2, f"error: {as_flags(explained)}")
        if launcher.is_peer_failure(error):
            launcher.give_up(error)
        raise
    finally:
        _log.removeHandler(handler)
    return 0


def _end(code: int, said: str) -> int:
    """Print the reason, in only one of several processes, and return the exit code."""
    if launcher.claim_end(code):
        print(said, file=sys.stderr)
    return code


def _run(args: Sequence[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(_help())
    elif args[0] == "--version":
        from importlib.metadata import version

        print(version("delta-transfer"))
    elif args[0].startswith("-"):
        raise ConfigError(
            f"unknown command {args[0]!r}: options go after the command, which is one of "
            f"{', '.join(COMMANDS)} (see: delta-transfer --help)"
        )
    else:
        find_command(args[0])(args[1:])


def _help() -> str:
    lines = ["usage: delta-transfer COMMAND ...", "", "Fine-tune without forgetting.", ""]
    lines += [f"  {name:10} {summary}" for name, summary in COMMANDS.items()]
    lines += ["", "delta-transfer COMMAND --help lists the options of a command."]
    return "\n".join(lines)
