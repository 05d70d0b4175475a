"""`make demo`: the whole way on embedded images, each stage a command that is printed before it runs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from launcher.clusters.cluster import visible_gpus

ROOT = Path(__file__).resolve().parents[1]


def commands(*, has_gpus: bool) -> list[tuple[str, str]]:
    """(what it does, what to type). Without GPUs two processes share the CPU, so that it is distributed all the same."""
    where = "--nodes 1" if has_gpus else "--nodes 1 --tasks-per-node 2"
    submit = f"python launcher/submit.py --cluster local {where}"
    return [
        ("Images into tar shards", "shards make sample --out shard_sets/sample"),
        ("Train a tiny tower from random weights", f"{submit} config=configs/train/demo.yaml"),
        ("Go on with LoRA adapters", f"{submit} config=configs/train/demo_lora.yaml"),
        ("Evaluate by retrieval", f"{submit} config=configs/evaluate/demo.yaml"),
    ]


def main() -> int:
    console = Console()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    started = time.monotonic()
    stages = commands(has_gpus=bool(visible_gpus()))
    console.print(
        f"Repeat any stage by hand after  [bold]source {Path(sys.prefix).name}/bin/activate[/bold]", highlight=False
    )
    for number, (what, command) in enumerate(stages, start=1):
        console.rule(f"{number} of {len(stages)}: {what}", align="left")
        console.print(f"$ {command}", style="bold", highlight=False, soft_wrap=True)
        code = subprocess.run(shlex.split(command), cwd=ROOT, env=os.environ | {"PATH": path}, check=False).returncode
        if code != 0:
            console.print(
                f"stopped: the command above ended with exit code {code}; repeating `make demo` goes on there"
            )
            return code
    _show(console)
    console.print(f"{(time.monotonic() - started) / 60:.1f} minutes in all")
    return 0


def _show(console: Console) -> None:
    from retrieval_train.evaluation import report
    from retrieval_train.rundir import RunDir

    run = RunDir((ROOT / "runs" / "demo-evaluation").resolve())
    console.print()
    for table in report.tables(report.Report.read(run.report)):
        console.print(table)
    console.print(f"report: {run.page}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
