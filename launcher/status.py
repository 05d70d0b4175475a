"""Look after runs that were submitted: a table of them, one in full, their logs; end, requeue and clean up.

examples:
  python launcher/status.py                            every run below ./runs
  python launcher/status.py show demo                  the newest run named demo, in full
  python launcher/status.py logs demo -f               what its rank 0 writes
  python launcher/status.py cancel runs/demo-1a2b3c4d
  python launcher/status.py seen demo glyphs/a-01      the steps that trained on an image
  python launcher/status.py sweep configs/sweep/margin.yaml      a table of its points: means over seeds
  python launcher/status.py pipeline configs/pipeline/demo.yaml  how its stages stand, and what each waits for

A RUN is a run folder or, below --runs-root, the name of one or of its newest run. `VERB --help` has more examples.
Exit codes: 0 well, 1 something did not end as asked, 2 a mistake to correct, 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: imports begin at the repo, not in launcher/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import os
import time

from launcher.looks import lookup, status_options, watch
from retrieval_train.rundir import RunDir, write_text


def main(argv: list[str] | None = None) -> int:
    options = status_options.parse(sys.argv[1:] if argv is None else argv, about=__doc__)
    try:
        code = _VERBS[options.verb](options)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _runs(options: argparse.Namespace) -> int:
    from launcher.looks import runs_table

    states = [state for given in options.state for state in given.split(",") if state]

    def look() -> list[runs_table.Row]:
        return runs_table.look(options.runs_root, states=states, pattern=options.name)

    if options.watch is not None:
        runs_table.watch_all(look, every_s=options.watch)
        return 0
    rows = look()
    if options.json:
        print(runs_table.as_json(rows))
    elif rows:
        runs_table.show(rows)
    else:
        print(f"no run in {options.runs_root} is like that", file=sys.stderr)
    return 0


def _show(options: argparse.Namespace) -> int:
    from launcher.looks import details

    print(details.text(lookup.find(options.run, options.runs_root)))
    return 0


def _logs(options: argparse.Namespace) -> int:
    from launcher.looks import logs

    run = lookup.find(options.run, options.runs_root)
    since = None if options.since is None else logs.moment(options.since)
    source: logs.OneRank | logs.AllRanks
    if options.all:
        source, what = logs.AllRanks(run), "of any rank"
    elif options.batch:
        source, what = logs.of_batch(run), "of its batch step"
    else:
        source, what = logs.of_rank(run, options.rank), f"of rank {options.rank}"
    if not logs.show(run, source, follow=options.follow, last=options.lines, since=since):
        raise ValueError(f"{run.path} has no log {what} ({run.state}); there are: {_ranks(run)}")
    return 0


def _ranks(run: RunDir) -> str:
    there = sorted((path.stem for path in run.logs.glob("*.log")), key=lambda name: (len(name), name))
    return ", ".join(there) or "none"


def _cancel(options: argparse.Namespace) -> int:
    from launcher.looks import signals

    named = lookup.find_many(options.runs, options.runs_root)
    return signals.cancel(named, options.runs_root)


def _requeue(options: argparse.Namespace) -> int:
    from launcher.looks import signals

    return signals.requeue(lookup.find_many(options.runs, options.runs_root))


def _clean(options: argparse.Namespace) -> int:
    from launcher.looks import clean
    from launcher.looks.details import amount

    found = clean.find(options.runs_root, kinds=options.kinds or clean.USUAL, days=options.days)
    for run, why in found.untouched:
        print(f"{watch.shown(run.path)} stays as it is: {why}", file=sys.stderr)
    for item in found.items:
        print(f"{item.kind:<12}{amount(item.bytes):>9}  {watch.shown(item.path)}  ({item.why})")
    for kind in dict.fromkeys(item.kind for item in found.items):
        mine = [item.bytes for item in found.items if item.kind == kind]
        print(f"== {kind}: {len(mine)}, {amount(sum(mine))}")
    total = amount(sum(item.bytes for item in found.items))
    if not options.yes or not found.items:
        print(f"== {total} in all; --yes removes them" if found.items else "nothing to clean")
        return 0
    kept = [(item, why) for item, why in clean.remove(options.runs_root, found.items) if why]
    for item, why in kept:
        print(f"{watch.shown(item.path)} stays: {why}", file=sys.stderr)
    freed = amount(sum(item.bytes for item in found.items) - sum(item.bytes for item, _ in kept))
    print(f"== removed {len(found.items) - len(kept)}, {freed}")
    return 1 if kept else 0


def _nodes(options: argparse.Namespace) -> int:
    from launcher.starts import bad_nodes

    if options.forget is not None:
        if not bad_nodes.forget(options.runs_root, options.forget):
            known = ", ".join(bad_nodes.read(options.runs_root)) or "none"
            raise ValueError(f"--forget {options.forget}: nothing is remembered of it; of these there is: {known}")
        print(f"{options.forget} is given to runs again")
        return 0
    known_bad, left_out = bad_nodes.read(options.runs_root), bad_nodes.to_leave_out(options.runs_root)
    for node, incidents in known_bad.items():
        print(f"{node}: {'left out' if node in left_out else 'used on'}, {len(incidents)} in the last week")
        for one in incidents:
            at = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.time))
            print(f"  {at}  {one.kind:<12}  {one.run}  {one.words.partition(chr(10))[0]}")
    if not known_bad:
        print(f"no run in {options.runs_root} has had a bad node in the last week")
    return 0


def _seen(options: argparse.Namespace) -> int:
    from launcher.looks import seen

    run = lookup.find(options.run, options.runs_root)
    if options.step is not None:
        seen.show_step(run, options.step)
    else:
        seen.show_key(run, options.key)
    return 0


def _overrides(options: argparse.Namespace) -> list[str]:
    """As submit's, with --runs-root among them."""
    overrides = list(options.overrides)
    if options.runs_root is not None:
        if given := [item for item in overrides if item.startswith("runs_root=")]:
            raise ValueError(f"--runs-root {options.runs_root} and {given[0]}: they mean the same; give one of them")
        overrides.append(f"runs_root={json.dumps(str(options.runs_root))}")
    return overrides


def _pipeline(options: argparse.Namespace) -> int:
    from launcher.pipelines import pipeline, pipeline_stages

    found = pipeline.find(options.pipeline, _overrides(options))
    if found is None:
        raise ValueError(f"{options.pipeline} is no pipeline: give a file with job: pipeline")
    print(pipeline_stages.table(pipeline_stages.look(found)))
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from launcher.sweeps import points, sweep_table

    found = points.find(options.sweep, _overrides(options), is_named=False)
    if found is None:
        raise ValueError(f"{options.sweep} is no sweep: give a file with grid, zip or points, or values as key=a,b")
    metrics = options.metric or ["mMP@5", "R@1"]
    results = sweep_table.look(found, metrics, scope=options.scope)
    how = {"scope": options.scope, "sort": options.sort}
    if options.json:
        print(sweep_table.as_json(found, results, metrics, **how))
    elif options.markdown:
        print(sweep_table.as_markdown(found, results, metrics, **how))
    elif options.page is not None:
        from launcher.sweeps import sweep_page

        write_text(options.page, sweep_page.as_html(found, results, metrics, **how))
        print(f"written: {watch.shown(options.page.absolute())}")
    else:
        sweep_table.show(found, results, metrics, **how)
    return 0


_VERBS = {
    "runs": _runs,
    "show": _show,
    "logs": _logs,
    "cancel": _cancel,
    "requeue": _requeue,
    "clean": _clean,
    "nodes": _nodes,
    "seen": _seen,
    "sweep": _sweep,
    "pipeline": _pipeline,
}


if __name__ == "__main__":
    sys.exit(main())
