"""How starts end on a real SLURM: each kind is told apart, and the run queued again, or not.

The ranks are of the job `patient`, without torch: this is about their supervisor. Trainings are in test_training.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from launcher.starts import attempts, bad_nodes
from launcher.starts.bad_nodes import Incident
from retrieval_train.rundir import RunDir
from tests.launcher.conftest import wait_until
from tests.slurm.conftest import Patient, Slurm, job_of, kinds, wait_for_end, wait_for_ranks

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module", autouse=True)
def limited(quick_repo: object, cluster: Slurm) -> Iterator[RunDir]:
    """A run that comes to its time limit while the other tests work, on a node that they leave alone."""
    run = Patient(quick_repo, cluster).submit("limited", "--time", "1", "--nodelist", "n4")  # type: ignore[arg-type]
    yield run
    Patient(quick_repo, cluster).end("limited")  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def whole(cluster: Slurm) -> Iterator[None]:
    yield
    cluster.mend()


def cluster_file(patient: Patient, requeue: str) -> str:
    name = f"requeue-{abs(hash(requeue))}.yaml"
    (patient.repo.path / name).write_text(f"scheduler: slurm\nsignal_delay_s: 10\nrequeue: {requeue}\n")
    return name


def told_by(run: RunDir) -> str:
    """The supervisor's log."""
    file = run.scheduler / "supervisor.log"
    return file.read_text() if file.exists() else ""


def test_a_preempted_run_is_queued_again_and_waits_for_its_turn(patient: Patient, cluster: Slurm) -> None:
    run = patient.submit("preempted", "--nodes", "2", "--nodelist", "n1,n2")
    patient.wait_for_start(run, 0, rank=1)
    other = cluster.preempt("n2", seconds=1)
    wait_until(lambda: run.state == "queued", timeout_s=40)
    patient.end("preempted")
    first, second = wait_for_end(run, starts=2)
    assert (first.kind, first.queued_again, second.kind) == ("preempted", True, "done")
    assert (first.words, first.nodes, first.at_fault) == ("saved and stopped", ("n1", "n2"), ())
    assert (first.job_id, second.job_id) == (job_of(run), job_of(run))
    assert cluster.states(other) == ["COMPLETED"]
    assert run.state == "done"


@pytest.mark.parametrize("is_back", [False, True], ids=["still away", "back already"])
def test_a_lost_first_node_takes_the_supervisor_along_and_the_next_start_finds_out(
    patient: Patient, cluster: Slurm, is_back: bool
) -> None:
    name = f"crash-{is_back}"
    run = patient.submit(name, "--nodes", "2", "--exclude", "n3,n4")
    patient.wait_for_start(run, 0, rank=1)
    cluster.crash("n1")
    wait_until(lambda: cluster.states(job_of(run)) == ["PENDING"], timeout_s=60)
    if is_back:
        cluster.mend()
    else:
        cluster.tell("scontrol", "update", f"JobId={job_of(run)}", "ExcNodeList=n4")
    patient.end(name)
    first, second = wait_for_end(run, starts=2)
    assert (first.kind, first.queued_again, first.at_fault, first.words) == ("node_failure", True, ("n1",), "lost n1")
    assert (second.kind, second.nodes) == ("done", ("n1", "n2") if is_back else ("n2", "n3"))
    (incident,) = bad_nodes.read(run.path.parent)["n1"]
    assert (incident.run, incident.kind) == (run.path.name, "node_failure")
    assert "n1" in patient.repo.status("nodes").out
    assert patient.repo.status("nodes", "--forget", "n1").code == 0


def test_a_node_that_is_gone_before_slurm_knows_is_left_out_after_two_tries(patient: Patient, cluster: Slurm) -> None:
    """By us, unless SLURM has found out by then."""
    bad_nodes.forget(patient.repo.path / "runs", "n2")
    cluster.crash("n2")
    run = patient.submit("gone", "--nodes", "2", "--exclude", "n4", until=False)
    first, *more, last = wait_for_end(run, starts=2)
    assert (first.kind, first.at_fault, first.queued_again) == ("node_failure", ("n2",), True)
    assert [attempt.at_fault for attempt in more] in ([], [("n2",)])
    assert (last.kind, last.nodes) == ("done", ("n1", "n3"))
    bad_nodes.forget(patient.repo.path / "runs", "n2")


def test_a_drained_node_is_left_at_the_next_start_and_a_spent_budget_ends_the_run(
    patient: Patient, cluster: Slurm
) -> None:
    file = cluster_file(patient, "{preempted: 1}")
    run = patient.submit("drained", "--cluster", file, "--exclude", "n4")
    patient.wait_for_start(run, 0)
    (first,) = attempts.read(run)
    cluster.tell("scontrol", "update", f"NodeName={first.nodes[0]}", "State=DRAIN", "Reason=a fan")
    assert patient.repo.status("requeue", "drained").code == 0
    patient.wait_for_start(run, 1)
    assert first.nodes != attempts.read(run)[1].nodes
    assert patient.repo.status("requeue", "drained").code == 0
    first, second = wait_for_end(run, starts=2)
    assert (second.kind, second.queued_again) == ("preempted", False)
    assert second.words == "saved and stopped; not queued again: requeue.preempted is 1"
    assert run.state == "preempted"
    told = patient.repo.status("show", "drained")
    assert "requeue.preempted is 1" in told.out, told.out + told.err

    patient.end("drained")
    assert patient.again("drained", "--cluster", file).code == 0
    assert [attempt.kind for attempt in wait_for_end(run, starts=3)] == ["preempted", "preempted", "done"]


def test_a_cancelled_job_is_not_queued_again_and_the_same_command_goes_on(patient: Patient, cluster: Slurm) -> None:
    file = cluster_file(patient, "{preempted: 0, node: 0}")
    run = patient.submit("cancelled", "--cluster", file, "--exclude", "n4")
    patient.wait_for_start(run, 0)
    old = job_of(run)
    cluster.tell("scancel", old)
    wait_until(lambda: cluster.states(old) == ["CANCELLED"], timeout_s=40)
    patient.end("cancelled")
    assert patient.again("cancelled", "--cluster", file).code == 0
    ended = wait_for_end(run, starts=2)
    assert [(attempt.kind, attempt.job_id) for attempt in ended] == [("cancelled", old), ("done", job_of(run))]
    assert cluster.states(old) == ["CANCELLED"]


def test_a_warning_that_comes_before_the_ranks_listen_is_no_crash(patient: Patient, cluster: Slurm) -> None:
    """Python, which takes a while to start, is ended by it."""
    file = cluster_file(patient, "{crash: 0}")
    run = patient.submit("early", "--cluster", file, "--exclude", "n4", until=False)
    wait_until(lambda: "RUNNING" in cluster.states(job_of(run)), timeout_s=60)
    wait_for_ranks(cluster, run)
    cluster.tell("scancel", "--signal=USR2", job_of(run))
    first, second = wait_for_end(run, starts=2)
    assert (first.kind, first.queued_again, second.kind) == ("preempted", True, "done")
    assert first.words in ("told to stop where it could not save", "saved and stopped")


def test_a_rank_that_dies_is_started_again_and_what_a_user_has_to_correct_is_not(patient: Patient) -> None:
    run = patient.submit("dies", "--nodes", "2", "--exclude", "n4", "dies=1", until=False)
    others = {}
    for does in ("refuse", "fail", "exit"):
        ended = patient.repo.submit("--exclude", "n4", f"run.name={does}", f"does={does}", "run.preflight=false")
        assert ended.code == 0, ended.err
        others[does] = patient.repo.run(does)
    told = {does: wait_for_end(one, starts=1) for does, one in others.items()}
    assert {does: [attempt.kind for attempt in one] for does, one in told.items()} == {
        "refuse": ["user_error"],
        "fail": ["error"],
        "exit": ["error"],
    }
    assert {one.state for one in others.values()} == {"failed"}
    assert "the set 'food' has no class with two images" in told["refuse"][0].words
    assert "Exited with exit code 7" in told["exit"][0].words
    first, second = wait_for_end(run, starts=2)
    assert (first.kind, first.queued_again, second.kind) == ("killed", True, "done")
    assert first.words == f"rank 1 on {first.nodes[1]} ended without a word: Killed"


def test_a_node_that_failed_twice_gets_no_run_of_ours(patient: Patient, cluster: Slurm) -> None:
    """Neither by a submit, nor when a run that is there comes back, nor one that waited when it failed."""
    root = patient.repo.path / "runs"
    cluster.tell("scontrol", "update", "NodeName=n3", "State=DRAIN", "Reason=a fan")
    waiting = patient.submit("waiting", "--exclude", "n2,n4", "--sbatch", "begin=now+8", until=False)
    here = patient.submit("here", "--nodes", "2", "--exclude", "n4")
    patient.wait_for_start(here, 0)
    for _ in range(2):
        bad_nodes.note(root, ["n1"], Incident(time.time(), "another-run", "node_failure", "lost"))
    assert "n1" in patient.repo.status("nodes").out
    try:
        later = patient.submit("later", "--nodes", "2", "--exclude", "n4", until=False)
        assert "ExcNodeList=n[1,4]" in cluster.tell("scontrol", "-o", "show", "job", job_of(later))
        wait_until(lambda: "SLURM gave n1, which failed before" in told_by(waiting), timeout_s=40)
        assert patient.repo.status("requeue", "here").code == 0
        wait_until(lambda: "without n1" in told_by(here))
        cluster.mend()
        patient.end("here")
        for run, nodes, starts in ((later, ("n2", "n3"), 1), (here, ("n2", "n3"), 2), (waiting, ("n3",), 2)):
            ended = wait_for_end(run, starts=starts)
            assert (ended[-1].kind, ended[-1].nodes) == ("done", nodes), run.path.name
    finally:
        assert patient.repo.status("nodes", "--forget", "n1").code == 0


def test_slurm_says_when_the_time_limit_comes_and_the_run_goes_on_in_another_start(
    limited: RunDir, patient: Patient
) -> None:
    """It says so up to a minute early, and looks twice a minute."""
    patient.wait_for_start(limited, 1, timeout_s=150)
    patient.end("limited")
    wait_for_end(limited, starts=2)
    assert kinds(limited)[-1] == ("done", False)
    assert {kind for kind, _ in kinds(limited)[:-1]} == {"timed_out"}
