"""Run a job by hand: `torchrun --nproc-per-node 2 -m jobs RUN_DIR`, or `python -m jobs RUN_DIR` for one process."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jobs.job import Preempted, start


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="a run folder that `python launcher/submit.py --print-command` made")
    options = parser.parse_args(argv)
    if not (options.run_dir / "config.yaml").is_file():
        print(f"{options.run_dir} is no run folder: it has no config.yaml", file=sys.stderr)
        return 2
    try:
        start(options.run_dir)
    except Preempted:
        print(f"{options.run_dir} saved and stopped; the same command goes on with it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
