"""Run functions in several processes of one group, over gloo on the CPU.

    python -m tests.several MODULE FUNCTION PROCESSES ARGUMENT ...

The processes are forks of one that has computed nothing yet, as imports are slow.
"""

import importlib
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path


def run(
    function: str,
    *arguments: object,
    processes: int = 2,
    module: str = __name__,
    timeout: float = 300,
) -> str:
    """Run a function in several processes; return their output.

    Raises:
        AssertionError: if it failed in one of them.
        TimeoutExpired: if it took longer than `timeout` seconds.
    """
    command = [sys.executable, "-m", "tests.several", module, function, processes, *arguments]
    started = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        start_new_session=True,
    )
    try:
        out, err = started.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)  # its copies too, which hold the pipes open
        started.communicate()
        raise
    assert started.returncode == 0, out + err
    return out


def environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return the variables that torchrun sets for a process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main(module: str, function: str, processes: int, arguments: list[str]) -> int:
    called = getattr(importlib.import_module(module), function)
    port, children = free_port(), []
    for rank in range(processes):
        child = os.fork()
        if not child:
            os.environ |= environment(rank, processes, port)
            try:
                called(*arguments)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
