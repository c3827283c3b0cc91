"""A command starts itself in several processes, by torchrun's elastic launcher."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

OUTCOME = "DELTA_TRANSFER_OUTCOME"
"""Environment variable: the file in which the first process that ends for good says so."""

MAX_RESTARTS = 3
SAVING_SECONDS = 300  # that processes have to save their state when they are asked to stop


def is_externally_launched() -> bool:
    """Whether something else has started this process as one of several: torchrun, or SLURM."""
    several = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1
    return several and ("RANK" in os.environ or "SLURM_PROCID" in os.environ)


def is_output_process() -> bool:
    """Whether this process is the one whose output is to be seen."""
    if not is_externally_launched():
        return True
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0


def launch(args: Sequence[str], *, processes: int) -> int:
    """Runs a command in so many processes; one that dies has all of them started again.

    An end that would be the same again, such as a mistake of the user's, is final.

    Args:
        args: of the command, its name first.
        processes: how many.

    Returns:
        The exit code.

    Raises:
        KeyboardInterrupt: if it was ended by a signal and no process has said so.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVING_SECONDS))
    # A store of addresses for each start: in a shared one they find those of processes that died.
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
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // processes)))
        quiet = logging.root.manager.disable
        logging.disable(logging.CRITICAL)  # the launcher speaks of every end
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


def _cores() -> int:
    import joblib

    return int(joblib.cpu_count())


def is_launched() -> bool:
    """Whether `launch` has started this process as one of several."""
    return OUTCOME in os.environ


def stop_if_over() -> None:
    """Ends this process where the processes were started again after one had ended for good."""
    if is_launched() and Path(os.environ[OUTCOME]).exists():
        sys.exit(0)


def claim_end(code: int) -> bool:
    """Whether this process is the first of several to end for good, and so says why.

    Args:
        code: its exit code.
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
    """Whether an error says that another process has gone."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    lost = any(kind.__module__.startswith("torch") for kind in type(error).__mro__)
    return is_externally_launched() and (
        lost or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
    )


def give_up(error: BaseException) -> NoReturn:
    """Ends this process, which cannot go on without another."""
    number = os.environ.get("RANK", os.environ.get("SLURM_PROCID"))
    said = str(error).split("\n")[0]
    sys.stderr.write(f"process {number} ends, as another one has ended ({said})\n")
    sys.stderr.flush()
    os._exit(1)
