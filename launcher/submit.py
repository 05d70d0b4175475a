"""Submit a job: check its config, plan where it runs, make its run folder, hand it to SLURM or to this machine.

examples:
  python launcher/submit.py config=configs/train/demo.yaml                      this machine, or SLURM where it answers
  python launcher/submit.py --nodes 4 config=configs/train/demo.yaml head.margin=0.3
  python launcher/submit.py --tasks-per-node 2 config=configs/train/demo.yaml run.device=cpu
  python launcher/submit.py --dry-run config=configs/train/demo.yaml            only say what would run
  python launcher/submit.py --time 60 --sbatch constraint=a100 config=configs/train/demo.yaml
  python launcher/submit.py --continue-from runs/demo --force-config config=configs/train/demo.yaml \\
      run.name=longer length.epochs=30

The same command again goes on with the same run: it follows one that is active, resumes one that stopped or failed, and
leaves one that is done alone. Exit codes: 0 done (or handed over), 1 the job failed or stopped, 2 a mistake to correct,
130 Ctrl-C (the run goes on).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: imports begin at the repo, not in launcher/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import contextlib
import shlex
import signal
import time
from collections.abc import Iterator
from types import FrameType

from jobs import job
from jobs.job import JobConfig
from jobs.training import origin
from launcher import cluster as clusters
from launcher import executors, folder, watch
from launcher import options as options_of
from launcher import ticket as tickets
from launcher.cluster import Cluster, Node
from launcher.launch import Launch
from launcher.plan import Plan, There, describe, make, torchrun_lines
from launcher.ticket import LocalTicket, Ticket
from retrieval_train import config as configs
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir, State


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = options_of.parse(argv, about=__doc__)
    try:
        return submit(options, command=shlex.join(["python", "launcher/submit.py", *argv]))
    except (ValueError, OSError) as error:  # what people give us, and disks that are full or not theirs
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; `python launcher/status.py runs` shows what was started", file=sys.stderr)
        return 130


def submit(options: argparse.Namespace, *, command: str) -> int:
    """One command line from config to exit code. Raises ValueError for what its user has to correct."""
    config, run = _read(options)
    if changes := origin.told(config):
        print(changes, file=sys.stderr)
    plan = _plan(options, config, run)
    link = folder.link_of(config)
    _refuse_own_link(options, link)
    if options.dry_run:
        return _print_plan(plan, run)
    with folder.only_one_submits(run.path.parent):
        ticket = folder.active_ticket(run)
        is_ours = ticket is None
        if ticket is not None:
            _refuse_while_active(options, run, ticket)
        elif run.state == "done" and not options.again:
            return _say_done(run)
        else:
            if options.again and run.state:
                print(f"the old run is kept as {watch.shown(folder.move_aside(run))}", file=sys.stderr)
            folder.prepare(run, config, plan, command=command, refresh_code=options.refresh_code)
            folder.point(link, run)
            if options.print_command:
                return _print_command(plan, run)
            ticket = _hand_over(plan, run)
    return _follow(options, run, ticket, is_ours=is_ours)


# --- from the command line to a plan


def _read(options: argparse.Namespace) -> tuple[JobConfig, RunDir]:
    overrides = options_of.overrides(options)
    files = [item.partition("=")[2] for item in overrides if item.startswith("config=")]
    rest = [item for item in overrides if not item.startswith("config=")]
    if len(files) != 1 or not files[0]:
        given = " ".join(f"config={file}" for file in files) or "is required and missing"
        raise ConfigError("command line", [("config", f"{given}; give one file, as config=configs/train/demo.yaml")])
    config = job.check(configs.read(Path(files[0]), overrides=rest), where=files[0])
    return config, RunDir(Path.cwd() / job.run_folder(config).path)


def _refuse_own_link(options: argparse.Namespace, link: Path) -> None:
    """Once the link leads to the new run, the same command would begin another one from that."""
    if options.continue_from is not None and Path(options.continue_from).absolute() == link.absolute():
        run = watch.shown(link.resolve())
        problem = f"{options.continue_from} will lead to the new run, of the same name; say {run}, or another run.name"
        raise ConfigError("command line", [("--continue-from", problem)])


def _plan(options: argparse.Namespace, config: JobConfig, run: RunDir) -> Plan:
    by_hand = options.print_command
    no_slurm = None if options.cluster == "local" or by_hand else clusters.why_no_slurm()
    name = options.cluster or ("local" if no_slurm or by_hand else "slurm")
    cluster = clusters.load(name)
    is_local = cluster.scheduler == "local" or by_hand
    node = clusters.this_machine() if is_local else _slurm_node(cluster, options, no_slurm)
    there = There(cluster=name, node=node, no_slurm=no_slurm)
    request, device = options_of.request(options), config.run.device
    return make(request, cluster, there, job=config.job, device=device, run_dir=run.path, by_hand=by_hand)


def _slurm_node(cluster: Cluster, options: argparse.Namespace, no_slurm: str | None) -> Node:
    """A node of the partition. Raises ConfigError where no SLURM answers."""
    asked = f"--cluster {options.cluster or 'slurm'}"
    if no_slurm:
        problem = f"there is no SLURM here ({no_slurm}); --cluster local runs on this machine"
        raise ConfigError("command line", [(asked, problem)])
    try:
        return clusters.partition_node(options.partition or cluster.partition)
    except clusters.NoAnswer as error:
        raise ConfigError("command line", [(asked, f"SLURM does not say what its nodes have: {error}")]) from error


def _print_plan(plan: Plan, run: RunDir) -> int:
    sbatch = executors.sbatch_text(plan, run) if plan.scheduler == "slurm" else None
    print(describe(plan, state=run.state, command=executors.rank_command(run), sbatch=sbatch))
    return 0


# --- the submit


def _refuse_while_active(options: argparse.Namespace, run: RunDir, ticket: Ticket) -> None:
    given = [name for name in ("again", "refresh_code", "print_command") if getattr(options, name)]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise ValueError(
            f"{option}: {watch.shown(run.path)} is active ({ticket.in_words()}); first {_status('cancel', run)}"
        )
    print(f"active already, {run.state}:", file=sys.stderr)


def _hand_over(plan: Plan, run: RunDir) -> Ticket:
    run.set_state("queued")  # before it starts: from then on the state is the job's
    with _ctrl_c_waits():
        try:
            ticket = executors.submit(plan, run, Launch(plan.job, str(run.path)))
        except BaseException:
            run.set_state("planned")
            raise
        tickets.write(run, ticket)
    return ticket


@contextlib.contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """A run that was started must not be forgotten: Ctrl-C takes effect after its ticket is written."""
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    before = signal.signal(signal.SIGINT, catch)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


def _print_command(plan: Plan, run: RunDir) -> int:
    torchrun = Path(sys.executable).with_name("torchrun")
    if plan.nodes > 1:
        print("# one line on each node, with MASTER_ADDR set to the name of the first", file=sys.stderr)
    for line in torchrun_lines(plan, code=run.code, torchrun=str(torchrun) if torchrun.exists() else "torchrun"):
        print(line)
    return 0


# --- after the submit


def _follow(options: argparse.Namespace, run: RunDir, ticket: Ticket, *, is_ours: bool) -> int:
    """Ctrl-C stops a run of this machine that this command started; any other one goes on."""
    wait = isinstance(ticket, LocalTicket) if options.wait is None else options.wait
    how = f"follow: {_status('logs', run)} -f\ncancel: {_status('cancel', run)}"
    print(f"run {watch.shown(run.path)} ({ticket.in_words()})", file=sys.stderr)
    if not wait:
        print(how, file=sys.stderr)
        return 0
    begun = time.monotonic()
    try:
        state = watch.follow(run, ticket)
    except KeyboardInterrupt:
        if not (is_ours and isinstance(ticket, LocalTicket)):
            print(f"\nthe run goes on: {watch.shown(run.path)} ({ticket.in_words()})\n{how}", file=sys.stderr)
            return 130
        state = _stop(run, ticket)
    return _say_how_it_ended(run, state, time.monotonic() - begun)


def _stop(run: RunDir, ticket: LocalTicket) -> State:
    """Ctrl-C: the run saves and stops; once more: it ends as it is."""
    print(f"\n{watch.shown(run.path)} saves and stops; Ctrl-C once more ends it at once", file=sys.stderr)
    ticket.cancel()
    try:
        return watch.follow(run, ticket)
    except KeyboardInterrupt:
        ticket.kill()
        return tickets.settle(run, ticket)


def _say_how_it_ended(run: RunDir, state: State, seconds: float) -> int:
    if state == "done":
        print(f"done in {seconds:.0f} s: {watch.shown(run.path)}{watch.results(run)}")
        return 0
    if state == "preempted":
        print(
            f"{watch.shown(run.path)} saved and stopped (preempted); the same command goes on with it", file=sys.stderr
        )
        return 1
    if state != "failed":
        print(f"{watch.shown(run.path)} was taken over by a newer submit, and is {state}", file=sys.stderr)
        return 1
    print(watch.failure(run), file=sys.stderr)
    return 1


def _say_done(run: RunDir) -> int:
    print(
        f"done already: {watch.shown(run.path)}; --again runs it from the start and keeps this one{watch.results(run)}"
    )
    return 0


def _status(verb: str, run: RunDir) -> str:
    script = watch.shown(Path(__file__).resolve().with_name("status.py"))
    return f"python {shlex.quote(script)} {verb} {shlex.quote(watch.shown(run.path))}"


if __name__ == "__main__":
    sys.exit(main())
