"""What the scheduler gets, and what happens on the node: two strings, unpickled by submitit in each rank's process.

submitit's own way with preemption is not used: it would call `checkpoint()` on rank 0 alone, inside a signal handler,
where no collective may run. Here signals raise in the main thread, until the training loop's `Stop` takes them and has
all ranks save at the same step; either way the job leaves by `Preempted`, and rank 0 puts it back into the queue.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launcher import cluster
from launcher.executors import Placement, placement
from retrieval_train.rundir import RunDir, write_text

log = logging.getLogger(__name__)

_FIRST_PORT, _NUM_PORTS = 12000, 20000  # below the ports that Linux gives to outgoing connections
_NEIGHBOUR_S = 2.0  # by how much one node may hear of a preemption before another
_REQUEUED_S = 120.0  # after a requeue SLURM ends the job's processes well within this


@dataclass(frozen=True)
class Launch:
    """One rank of a run: called by submitit on the node."""

    job: str
    run_dir: str

    def __call__(self) -> dict[str, float]:
        place, run = placement(), RunDir(Path(self.run_dir))
        os.environ.update(rank_variables(place, cores=len(os.sched_getaffinity(0))))
        told = _Told()
        told.listen()

        from jobs.job import Preempted, start

        try:
            return start(run.path)
        except Preempted:
            self._stopped(run, place)
        except (Exception, _Stop):
            # another rank may have left first because of the same signal, and broken our collective by that
            time.sleep(0.0 if told.to_stop or place.scheduler == "local" else _NEIGHBOUR_S)
            if not told.to_stop:
                raise
            self._stopped(run, place)
        return {}

    def _stopped(self, run: RunDir, place: Placement) -> None:
        if run.state == "done":
            return  # the signal came while the processes were taken down
        if place.scheduler == "slurm":
            _requeue(run, place)
        else:
            run.error.unlink(missing_ok=True)
            run.set_state("preempted")


class _Stop(SystemExit):
    """Raised wherever the rank is. No `Exception`: one that comes in the middle of logging, say, would be swallowed."""


class _Told:
    """The handlers until the training loop installs its own, and for jobs that have none."""

    def __init__(self) -> None:
        self.to_stop = False

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGUSR2, self._stop)
        # SLURM sends it with every signal; submitit logs it, which is no place to be interrupted
        signal.signal(signal.SIGCONT, signal.SIG_DFL)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.to_stop = True
        raise _Stop("told to stop by SIGUSR2")

    def _end(self, number: int, frame: FrameType | None) -> None:
        raise SystemExit("ended by SIGTERM: cancelled, out of time, or another rank failed")


def rank_variables(place: Placement, *, cores: int) -> dict[str, str]:
    """What torch.distributed wants to know. `cores` are those that this process may use."""
    # all ranks of one start compute the same port, and the next start, whose first node may be the same, another one
    start = int(place.job_id.partition("_")[0]) + 7919 * place.restarts  # not +1 each: that is the next job's port
    port = place.port or _FIRST_PORT + start % _NUM_PORTS
    threads = place.cpus_per_task or max(1, cores // place.local_size)
    return {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.size),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_size),
        "MASTER_ADDR": place.first_host,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
    }


def _requeue(run: RunDir, place: Placement) -> None:
    """Rank 0 requeues, all wait to be ended by it: a rank that left by itself could have the job called finished."""
    if place.rank == 0:
        run.error.unlink(missing_ok=True)
        try:
            state = cluster.job_state(place.job_id)
            if state is None or state[0] != "RUNNING":  # cancelled or out of time: not to be brought back to life
                raise cluster.NoAnswer(f"it is {state[0] if state else 'gone'}")
            run.set_state("queued")
            cluster.requeue(place.job_id)
        except cluster.NoAnswer as error:
            words = f"saved and stopped, but SLURM job {place.job_id} is not queued again: {error}"
            write_text(run.error, f"{words}\nThe same command goes on with it.\n")
            run.set_state("preempted")
            raise SystemExit(words) from error
        log.info("requeued SLURM job %s", place.job_id)
    time.sleep(_REQUEUED_S)
    raise SystemExit(f"rank {place.rank} was not ended within {_REQUEUED_S:g} s of its requeue")
