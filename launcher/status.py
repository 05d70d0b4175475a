"""Look after runs that were submitted: a table of them, their logs, and how to end one.

examples:
  python launcher/status.py runs                       every run below ./runs
  python launcher/status.py logs demo -f               what rank 0 of the newest run named demo writes
  python launcher/status.py cancel runs/demo-1a2b3c4d
  python launcher/status.py seen demo glyphs/a-01      the steps that trained on an image
  python launcher/status.py seen demo --step 120       the images that a step trained on
  python launcher/status.py sweep configs/sweep/margin.yaml      a table of its points: means over seeds

A RUN is a run folder or, below --runs-root, the name of one or of its newest run.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: imports begin at the repo, not in launcher/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import difflib
import time
from typing import Any

from launcher import folder, watch
from launcher import ticket as tickets
from retrieval_train.rundir import RunDir, write_text

_CANCEL_S = 90.0


def main(argv: list[str] | None = None) -> int:
    options = _parse(sys.argv[1:] if argv is None else argv)
    try:
        return int(options.do(options))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parse(argv: list[str]) -> argparse.Namespace:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--runs-root", type=Path, default=Path("runs"), help="folder of the runs; default: runs")
    parser = argparse.ArgumentParser(
        prog="python launcher/status.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, metavar="{runs,logs,cancel,seen,sweep}")
    runs = verbs.add_parser("runs", parents=[shared], help="a table of all runs")
    runs.set_defaults(do=_runs)
    logs = verbs.add_parser("logs", parents=[shared], help="what a rank wrote")
    logs.add_argument("run", metavar="RUN")
    logs.add_argument("--rank", type=int, default=0)
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    logs.set_defaults(do=_logs)
    cancel = verbs.add_parser("cancel", parents=[shared], help="end a run; it may save first")
    cancel.add_argument("run", metavar="RUN")
    cancel.set_defaults(do=_cancel)
    seen = verbs.add_parser("seen", parents=[shared], help="which steps trained on an image, or on which images a step")
    seen.add_argument("run", metavar="RUN")
    asked = seen.add_mutually_exclusive_group(required=True)
    asked.add_argument("key", metavar="KEY", nargs="?", help="key of a sample: <domain>/<name>")
    asked.add_argument("--step", type=int, help="as metrics.jsonl counts: from 1")
    seen.set_defaults(do=_seen)
    _add_sweep(verbs)
    return parser.parse_args(argv)


def _add_sweep(verbs: Any) -> None:
    table = verbs.add_parser("sweep", help="a table of a sweep's points")
    table.add_argument("sweep", metavar="FILE", help="as in submit: a sweep's file, or a config with key=a,b")
    table.add_argument("overrides", nargs="*", metavar="key=value", help="as in submit")
    table.add_argument("--metric", action="append", metavar="NAME", help="of report.json; default: mMP@5 and R@1")
    table.add_argument("--scope", default="merged", help="merged, or a domain")
    how = table.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="with every run and its numbers")
    how.add_argument("--markdown", action="store_true")
    table.set_defaults(do=_sweep)


# --- runs


def _runs(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    found = _all_runs(options.runs_root)
    if not found:
        raise ValueError(f"no runs in {options.runs_root}; --runs-root names another folder")
    table = Table(box=None, pad_edge=False)
    widest = max(len(run.path.name) for run in found)
    for name, width in {"run": widest, "state": 9, "step": 18, "age": 6, "note": 0}.items():
        # a name that was cut could not be typed again: the note gives way first
        table.add_column(name, no_wrap=True, min_width=width, overflow="ellipsis")
    for run in sorted(found, key=lambda run: (run.path / "state").stat().st_mtime):
        table.add_row(*(escape(cell) for cell in _row(run)))
    console = Console()
    console.print(table, width=None if console.is_terminal else 160)
    return 0


def _row(run: RunDir) -> tuple[str, str, str, str, str]:
    note = ""
    try:
        folder.active_ticket(run)  # settles a run that died without a word
    except ValueError as error:
        note = str(error)
    progress = watch.read_progress(run) or {}
    step = "" if not progress else f"{progress['stage']} {progress['done']}/{progress['total']}"
    if run.state == "failed" and run.error.exists():
        note = run.error.read_text(encoding="utf-8").partition("\n")[0]
    age = _age(time.time() - (run.path / "state").stat().st_mtime)
    return run.path.name, run.state or "?", step, age, note or str(progress.get("note", ""))


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


# --- one run


def _logs(options: argparse.Namespace) -> int:
    run = _find(options.run, options.runs_root)
    position, path = 0, None
    while True:
        ticket = tickets.read(run)
        is_over = not options.follow or ticket is None or not ticket.is_active()  # looked at before the last lines
        path = path or watch.log_of(run, options.rank)
        if path is not None:
            with path.open(encoding="utf-8", errors="replace") as file:
                file.seek(position)
                print(file.read(), end="", flush=True)
                position = file.tell()
        if is_over:
            break
        time.sleep(0.5 if isinstance(ticket, tickets.LocalTicket) else 5.0)
    if path is None:
        raise ValueError(f"{run.path} has no log of rank {options.rank} ({run.state}); there are: {_ranks(run)}")
    return 0


def _ranks(run: RunDir) -> str:
    return ", ".join(sorted(path.stem for path in run.logs.glob("*.log"))) or "none"


def _cancel(options: argparse.Namespace) -> int:
    run = _find(options.run, options.runs_root)
    ticket = folder.active_ticket(run)
    if ticket is None:
        raise ValueError(f"{run.path} is not active: {run.state}")
    ticket.cancel()
    print(f"told {ticket.in_words()} to end; it may save first", file=sys.stderr)
    until = time.monotonic() + _CANCEL_S
    while ticket.is_active():
        if time.monotonic() > until:
            print(f"{ticket.in_words()} still runs after {_CANCEL_S:g} s", file=sys.stderr)
            return 1
        time.sleep(0.2 if isinstance(ticket, tickets.LocalTicket) else 1.0)
    state = tickets.settle(run, ticket, patience_s=10.0)
    if state == "failed":  # instead of the words of whichever rank was ended first
        write_text(run.error, "cancelled; the same command goes on with it\n")
    print(f"{watch.shown(run.path)} has ended: {state}; the same submit goes on with it")
    return 0


def _seen(options: argparse.Namespace) -> int:
    from launcher import seen

    run = _find(options.run, options.runs_root)
    if options.step is not None:
        seen.show_step(run, options.step)
    else:
        seen.show_key(run, options.key)
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from launcher import points, sweep_table

    found = points.find(options.sweep, options.overrides, is_named=False)
    if found is None:
        raise ValueError(f"{options.sweep} is no sweep: give a file with grid, zip or points, or values as key=a,b")
    metrics = options.metric or ["mMP@5", "R@1"]
    results = sweep_table.look(found, metrics, scope=options.scope)
    if options.json:
        print(sweep_table.as_json(found, results, metrics, scope=options.scope))
    elif options.markdown:
        print(sweep_table.as_markdown(found, results, metrics, scope=options.scope))
    else:
        sweep_table.show(found, results, metrics, scope=options.scope)
    return 0


def _find(name: str, runs_root: Path) -> RunDir:
    for path in (Path(name), runs_root / name):
        run = RunDir(path.resolve())
        if run.path.is_dir() and run.state is not None:
            return run
    known = [run.path.name for run in _all_runs(runs_root)]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"{name} is no run; {hint}`runs --runs-root {runs_root}` lists {len(known)}")


def _all_runs(runs_root: Path) -> list[RunDir]:
    if not runs_root.is_dir():
        return []
    folders = (RunDir(path) for path in runs_root.iterdir() if not path.is_symlink() and not path.name.startswith("."))
    return [run for run in folders if run.path.is_dir() and run.state is not None]


if __name__ == "__main__":
    sys.exit(main())
