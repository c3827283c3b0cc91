"""How long the help of a command takes to appear: the median of several starts, in seconds.

python benchmarks/help.py
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = (["--help"], ["train", "--help"], ["evaluate", "--help"], ["predict", "--help"])
START = "import sys; from delta_transfer.cli import main; sys.exit(main())"


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", START, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    rows = []
    print(f"{'command':16} {'median':>7} {'slowest':>8}")
    for command in COMMANDS:
        seconds(command)  # the first start reads the files from disk
        times = [seconds(command) for _ in range(options.repeat)]
        row = {"command": " ".join(command), "median": statistics.median(times), "all": times}
        rows.append(row)
        print(f"{row['command']:16} {row['median']:7.3f} {max(times):8.3f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
