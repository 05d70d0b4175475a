"""What the scheduler gets, and what happens on the node: two strings, unpickled by submitit in each rank's process.

submitit's own way with preemption is not used: it would call `checkpoint()` on rank 0 alone, inside a signal handler,
where no collective may run. Here signals raise in the main thread, until the training loop's `Stop` takes them and has
all ranks save at the same step; either way the run's state says `preempted` when the ranks leave, and who started them
(supervise.py, controller.py) decides what follows.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from jobs import failure as failures
from launcher.starts.executors import Placement, placement
from retrieval_train.rundir import RunDir

log = logging.getLogger(__name__)

TERMINATED = 128 + signal.SIGTERM
"""The exit code of a rank that SIGTERM ended: it may have had nothing to do with this rank."""
_ENDED = b"ended by SIGTERM: cancelled, out of time, preempted without warning, or another rank failed\n"
_FIRST_PORT, _NUM_PORTS = 12000, 20000  # below the ports that Linux gives to outgoing connections
_NEIGHBOUR_S = 2.0  # by how much one node may hear of a preemption before another


@dataclass(frozen=True)
class Launch:
    """One rank of a run: called by submitit on the node."""

    job: str
    run_dir: str
    """Empty: what $LAUNCHER_RUN says, for a run that was not there when the job was submitted."""

    def __call__(self) -> dict[str, float]:
        place, run = placement(), RunDir(Path(self.run_dir or os.environ["LAUNCHER_RUN"]))
        os.environ.update(rank_variables(place, cores=len(os.sched_getaffinity(0))))
        told = _Told()
        told.listen()

        from jobs.job import Preempted, start

        try:
            return start(run.path)
        except Preempted:
            pass  # the job has said so
        except (Exception, _Stop):
            # another rank may have left first because of the same signal, and broken our collective by that
            time.sleep(0.0 if told.to_stop or place.scheduler == "local" else _NEIGHBOUR_S)
            if not told.to_stop:
                raise
            self._stopped(run)
        return {}

    def _stopped(self, run: RunDir) -> None:
        if run.state != "done":  # else the signal came while the processes were taken down
            failures.clear(run)
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
        os.write(2, _ENDED)  # not print: the signal may have come in the middle of one
        raise SystemExit(TERMINATED)


def rank_variables(place: Placement, *, cores: int) -> dict[str, str]:
    """What torch.distributed wants to know. `cores` are those that this process may use."""
    # all ranks of one start compute the same port, and the next start, whose first node may be the same, another one
    start = place.number + 7919 * place.restarts  # not +1 each: that is the next job's port
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
