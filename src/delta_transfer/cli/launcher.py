"""Start a command in several processes, with torchrun's elastic launcher."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

OUTCOME = "DELTA_TRANSFER_OUTCOME"
"""Environment variable: file to which the first process to finish writes its exit code."""

MAX_RESTARTS = 3
SAVING_SECONDS = 300  # for processes to save a checkpoint when they are asked to stop


def is_externally_launched() -> bool:
    """Return whether torchrun or SLURM has started this process as one of several."""
    several = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1
    return several and ("RANK" in os.environ or "SLURM_PROCID" in os.environ)


def is_output_process() -> bool:
    """Return whether the output of this process is shown: that of the first of several."""
    if not is_externally_launched():
        return True
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0


def launch(args: Sequence[str], *, processes: int) -> int:
    """Run a command in several processes, and restart all of them when one dies.

    They are not restarted after an error that would come back, such as a wrong option.

    Args:
        args: name and arguments of the command.
        processes: number of processes.

    Returns:
        The exit code.

    Raises:
        KeyboardInterrupt: if a signal ended it before a process wrote an exit code.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from delta_transfer.utils.devices import cpu_count

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVING_SECONDS))
    # One address store per start: a shared one still has the addresses of dead processes.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()),
        max_restarts=MAX_RESTARTS,
        monitor_interval=0.1,
    )
    with tempfile.TemporaryDirectory() as folder:
        outcome = Path(folder, "outcome")
        os.environ[OUTCOME] = str(outcome)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // processes)))
        quiet = logging.root.manager.disable
        logging.disable(logging.CRITICAL)  # the launcher logs every exit of a process
        try:
            elastic_launch(config, sys.executable)("-m", "delta_transfer", *args)
        except (ChildFailedError, SignalException) as error:
            if isinstance(error, SignalException) and not outcome.exists():
                said = "terminated" if error.sigval == signal.SIGTERM else "interrupted"
                raise KeyboardInterrupt(said) from None
            return int(outcome.read_text()) if outcome.exists() else 1
        finally:
            logging.disable(quiet)
            del os.environ[OUTCOME]
        return int(outcome.read_text()) if outcome.exists() else 0


def is_launched() -> bool:
    """Return whether `launch` has started this process as one of several."""
    return OUTCOME in os.environ


def stop_if_over() -> None:
    """Exit if the processes were restarted after one of them had finished."""
    if is_launched() and Path(os.environ[OUTCOME]).exists():
        sys.exit(0)


def claim_end(code: int) -> bool:
    """Return whether this process is the first to finish, which then prints the reason.

    Args:
        code: exit code of this process.
    """
    if not is_launched():
        return is_output_process()
    try:
        with open(os.environ[OUTCOME], "x") as file:
            file.write(str(code))
    except FileExistsError:
        return False
    return True


def is_peer_failure(error: BaseException) -> bool:
    """Return whether an error was caused by the loss of another process."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    lost = any(kind.__module__.startswith("torch") for kind in type(error).__mro__)
    return is_externally_launched() and (
        lost or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
    )


def give_up(error: BaseException) -> NoReturn:
    """End this process after another one was lost."""
    number = os.environ.get("RANK", os.environ.get("SLURM_PROCID"))
    said = str(error).split("\n")[0]
    sys.stderr.write(f"process {number} stops because another one was lost ({said})\n")
    sys.stderr.flush()
    os._exit(1)
