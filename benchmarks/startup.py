"""Startup time of --help and other commands: the median of several runs, in seconds.

python benchmarks/startup.py
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = (
    ["--help"],
    ["--version"],
    *([name, "--help"] for name in ("train", "evaluate", "predict")),
)
MAIN = "import sys; from delta_transfer.cli.main import main; sys.exit(main())"
STARTS = {
    "python": ["pass"],  # what any start costs
    "import": ["import delta_transfer"],
    **{" ".join(command): [MAIN, *command] for command in COMMANDS},
}


def seconds(start: list[str]) -> tuple[float, float]:
    """By the clock, and of processor: on a busy machine the second says more."""
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", *start], check=True, stdout=subprocess.DEVNULL)
    after, elapsed = os.times(), time.perf_counter() - started
    user, system = (
        getattr(after, n) - getattr(before, n) for n in ("children_user", "children_system")
    )
    return elapsed, user + system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    rows = []
    print(f"{'start':16} {'median':>7} {'slowest':>8} {'processor':>10}")
    for name, start in STARTS.items():
        seconds(start)  # the first one reads the files from disk
        times = [seconds(start) for _ in range(options.repeat)]
        clock, processor = zip(*times, strict=True)
        medians = {"median": statistics.median(clock), "processor": statistics.median(processor)}
        row = {"start": name, **medians, "all": times}
        rows.append(row)
        print(f"{name:16} {row['median']:7.3f} {max(clock):8.3f} {row['processor']:10.3f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
