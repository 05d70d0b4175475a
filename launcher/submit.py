"""Submit a job: check its config, plan where it runs, make its run folder, hand it to SLURM or to this machine.

examples:
  python launcher/submit.py config=configs/train/demo.yaml                      this machine, or SLURM where it answers
  python launcher/submit.py --nodes 4 config=configs/train/demo.yaml head.margin=0.3
  python launcher/submit.py --tasks-per-node 2 config=configs/train/demo.yaml run.device=cpu
  python launcher/submit.py --dry-run config=configs/train/demo.yaml            only say what would run
  python launcher/submit.py --time 60 --sbatch constraint=a100 config=configs/train/demo.yaml
  python launcher/submit.py --continue-from runs/demo --force-config config=configs/train/demo.yaml \\
      run.name=longer length.epochs=30
  python launcher/submit.py config=configs/train/demo.yaml head.margin=0.2,0.3 seed=0,1,2       a sweep: 2 x 3 runs
  python launcher/submit.py --sweep configs/sweep/margin.yaml seed=0                 the sweep of a file; --dry-run lists it
  python launcher/submit.py config=configs/pipeline/demo.yaml train.seed=1      runs that need each other; docs/pipelines.md

The same command again goes on with the same run: it follows one that is active, resumes one that stopped or failed, and
leaves one that is done alone. Exit codes: 0 done (or handed over), 1 the job failed or stopped, 2 a mistake to correct,
130 Ctrl-C (the run goes on).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: imports begin at the repo, not in launcher/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import shlex

from launcher import options as options_of


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = options_of.parse(argv, about=__doc__)
    from launcher import command  # after the options: --help needs nothing of it

    try:
        return command.submit(options, said=shlex.join(["python", "launcher/submit.py", *argv]))
    except (ValueError, OSError) as error:  # what people give us, and disks that are full or not theirs
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; `python launcher/status.py runs` shows what was started", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
