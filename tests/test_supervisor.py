"""What the supervisor of Slurm jobs decides, with a made-up Slurm; tests/slurm/test_workers.py has the real one."""

import itertools
import os
import re
import time
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster

from geochip.cluster import _security, _supervisor, _tasks, run_tasks
from geochip.cluster._supervisor import Supervisor
from geochip.cluster._tasks import watched
from geochip.config import ClusterConfig
from geochip.errors import WorkError
from geochip.slurm import JobState, SlurmError


class Slurm:
    """Jobs by id, with their states; submits, and is the scheduler that knows which workers are there."""

    key, name, address = "cluster.cpu", "geochip-test", "tcp://nowhere"
    start_seconds, life_seconds = 300.0, 10.0
    refusal, most = "Job violates accounting/QOS policy", 1000
    # How many jobs it takes without an answer; what sbatch says then.
    mute, no_answer = 0, "Batch job submission failed: Socket timed out on send/recv operation"

    def __init__(self, tmp_path):
        self.states, self.here, self.ids = {}, set(), map(str, itertools.count(1))
        self.cancelled, self.closed, self.directory = [], 0, tmp_path
        self.started, self.reasons, self.expected = {}, {}, {}

    def submit(self):
        if len(self.states) >= self.most:
            raise SlurmError(f"sbatch: {self.refusal}; ask for fewer workers", self.refusal)
        job_id = next(self.ids)
        self.states[job_id] = "RUNNING"
        self.here.add(job_id)
        if self.mute:
            self.mute -= 1
            raise SlurmError(f"sbatch: {self.no_answer}; try again", self.no_answer)
        return job_id

    def log(self, job_id):
        return Path(self.directory / f"{job_id}.out")

    def names(self):
        return [f"{job_id}-0" for job_id in self.here]

    def close(self):
        self.closed += 1

    def end(self, job_id, state):
        self.states[job_id] = state
        self.here.discard(job_id)

    def job_states(self, name, ids=(), *, details=True):
        assert name == self.name
        return {
            job_id: JobState(
                job_id=job_id,
                state=state,
                started=self.started.get(job_id, "12:00"),
                reason=self.reasons.get(job_id, ""),
                expected_start=self.expected.get(job_id),
            )
            for job_id, state in self.states.items()
            if state is not None
        }


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    made_up = Slurm(tmp_path)
    monkeypatch.setattr(_supervisor, "job_states", made_up.job_states)
    monkeypatch.setattr(_supervisor, "cancel", lambda ids: made_up.cancelled.extend(ids))
    monkeypatch.setattr(_supervisor, "run_slurm", lambda *command: made_up.cancelled.append(command[2]))
    monkeypatch.setattr(_supervisor, "_TICK_SECONDS", 3600)  # the tests look themselves
    for name in ("_GOODBYE_SECONDS", "_END_SECONDS", "_CANCEL_AGAIN_SECONDS"):
        monkeypatch.setattr(_supervisor, name, 0)
    return made_up


def looks(supervisor, times=3):
    """Some looks at Slurm, as the supervisor's thread does."""
    for _ in range(times):
        supervisor._next_poll = 0
        supervisor._tick()


def test_as_many_lost_jobs_are_replaced_as_is_allowed_and_no_more(slurm, capsys):
    with Supervisor(slurm, slurm, ClusterConfig(max_replacements=10), 20) as supervisor:
        looks(supervisor)
        for job_id in list(slurm.states)[:12]:
            slurm.end(job_id, "FAILED")
        looks(supervisor)
        assert len(slurm.states) == 30
        supervisor.look()
        assert (
            "12 jobs were lost: no more are submitted (cluster.max_replacements); 18 are left"
            in capsys.readouterr().err
        )


def test_jobs_that_reached_their_time_are_renewed_however_many_were_lost(slurm, monkeypatch):
    with Supervisor(slurm, slurm, ClusterConfig(max_replacements=0), 2) as supervisor:
        looks(supervisor)
        slurm.end("1", "FAILED")
        looks(supervisor)
        assert len(slurm.states) == 2
        began = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: began + slurm.life_seconds)
        # One that Slurm told of, the next one that it had forgotten by then.
        slurm.end("2", "COMPLETED")
        looks(supervisor)
        assert set(slurm.states) == {"1", "2", "3"}
        monkeypatch.setattr(time, "monotonic", lambda: began + 2 * slurm.life_seconds)
        slurm.end("3", None)
        looks(supervisor)
        assert set(slurm.states) == {"1", "2", "3", "4"}
        supervisor.look()
        slurm.end("4", "FAILED")
        looks(supervisor)
        with pytest.raises(WorkError, match=r"^2 jobs were lost, and cluster.max_replacements is 0; see the logs"):
            supervisor.look()


def at(monkeypatch, seconds):
    """Set the clock to that many seconds from now on."""
    now = time.monotonic() + seconds
    monkeypatch.setattr(time, "monotonic", lambda: now)


def test_what_slurm_takes_of_the_jobs_is_worked_with_and_the_others_are_tried_again(slurm, monkeypatch, capsys):
    slurm.most = 2
    with Supervisor(slurm, slurm, ClusterConfig(max_replacements=0), 4) as supervisor:
        told = capsys.readouterr().err
        assert "submitted jobs 1, 2 as" in told
        assert "Job violates accounting/QOS policy; ask for fewer workers; going on with 2 of 4 workers" in told
        looks(supervisor)
        # As long as the words are the same they are not said again.
        for _ in range(2):
            at(monkeypatch, 61)
            looks(supervisor)
        told = capsys.readouterr().err
        assert "tried again" not in told
        assert "2 of 4 workers are there; 2 more could not be submitted: sbatch: Job violates accounting" in told
        slurm.most = 3
        at(monkeypatch, 61)
        looks(supervisor)
        assert list(slurm.states) == ["1", "2", "3"]
        # It is in place of none, and none is in place of one that is lost.
        assert re.search(r"submitted job 3$", capsys.readouterr().err, re.MULTILINE)
        slurm.most = 10
        slurm.end("1", "FAILED")
        at(monkeypatch, 61)
        looks(supervisor)
        assert list(slurm.states) == ["1", "2", "3", "4"]
        supervisor.look()
        for job_id in ("2", "3", "4"):
            slurm.end(job_id, "FAILED")
        looks(supervisor)
        with pytest.raises(WorkError, match=r"^4 jobs were lost, and cluster.max_replacements is 0"):
            supervisor.look()


def test_a_job_that_slurm_took_without_an_answer_is_one_of_the_workers(slurm, monkeypatch, capsys):
    with Supervisor(slurm, slurm, ClusterConfig(max_replacements=1), 3) as supervisor:
        looks(supervisor)
        slurm.end("3", "FAILED")
        slurm.mute = 1
        looks(supervisor)
        told = capsys.readouterr().err
        assert "Socket timed out on send/recv operation; try again; tried again every minute" in told
        assert "job 4 was submitted, though sbatch had no answer; it is one of the workers" in told
        at(monkeypatch, 61)
        looks(supervisor)
        # It is the one in place of the lost one: no other is submitted.
        assert list(slurm.states) == ["1", "2", "3", "4"]
        slurm.end("4", "FAILED")
        looks(supervisor)
        assert list(slurm.states) == ["1", "2", "3", "4"]
        assert "job 4 failed" in capsys.readouterr().err


def test_jobs_that_slurm_took_without_an_answer_at_the_start_are_not_submitted_twice(slurm, monkeypatch, capsys):
    taken = slurm.submit

    def last_is_mute():
        slurm.mute = int(len(slurm.states) == 2)
        return taken()

    monkeypatch.setattr(slurm, "submit", last_is_mute)
    with Supervisor(slurm, slurm, ClusterConfig(), 3) as supervisor:
        assert "try again; going on with 2 of 3 workers, and trying again" in capsys.readouterr().err
        looks(supervisor)
        at(monkeypatch, 61)
        looks(supervisor)
        assert list(slurm.states) == ["1", "2", "3"]
        assert "3 of 3 workers are there" in capsys.readouterr().err


@pytest.mark.parametrize(("said", "goes_on"), [(Slurm.no_answer, True), ("Invalid account", False)])
def test_without_any_worker_a_run_goes_on_only_where_slurm_may_answer_later(slurm, monkeypatch, said, goes_on):
    with Supervisor(slurm, slurm, ClusterConfig(wait_minutes=5), 2) as supervisor:
        looks(supervisor)
        slurm.most, slurm.refusal = 0, said
        slurm.end("1", "NODE_FAIL")
        slurm.end("2", "NODE_FAIL")
        looks(supervisor)
        if goes_on:
            supervisor.look()
            at(monkeypatch, 301)
            looks(supervisor)
        with pytest.raises(WorkError, match="^no worker for 5 minutes" if goes_on else "^sbatch: Invalid account"):
            supervisor.look()


def test_slurm_is_asked_seldom_while_nothing_is_the_matter(slurm, monkeypatch):
    asked = []

    def job_states(name, ids=()):
        asked.append(name)
        # Details of those alone that are followed.
        assert set(ids) == set(supervisor._jobs)
        return slurm.job_states(name, ids)

    def asked_in(seconds):
        asked.clear()
        for _ in range(seconds):
            at(monkeypatch, 1)
            supervisor._tick()
        return len(asked)

    monkeypatch.setattr(_supervisor, "job_states", job_states)
    with Supervisor(slurm, slurm, ClusterConfig(), 2) as supervisor:
        slurm.here.clear()
        assert asked_in(20) == 10
        slurm.here.update(slurm.states)
        asked_in(10)
        assert asked_in(300) == 10
        # One that goes is looked after at once, and then while another one waits for its turn.
        slurm.end("1", "FAILED")
        asked_in(5)
        assert list(slurm.states) == ["1", "2", "3"]
        slurm.states["3"] = "PENDING"
        slurm.here.discard("3")
        asked_in(70)
        assert asked_in(300) == 30


def test_a_job_that_the_staff_hold_is_not_replaced(slurm):
    with Supervisor(slurm, slurm, ClusterConfig(wait_minutes=5), 1) as supervisor:
        slurm.end("1", "PENDING")
        slurm.reasons["1"] = "JobHeldAdmin"
        looks(supervisor, 5)
        assert list(slurm.states) == ["1"]
        supervisor.look()


def test_when_a_job_is_expected_to_start_is_told(slurm, capsys):
    with Supervisor(slurm, slurm, ClusterConfig(), 2) as supervisor:
        for job_id in ("1", "2"):
            slurm.end(job_id, "PENDING")
            slurm.reasons[job_id] = "Resources"
        slurm.expected.update({"1": "2026-03-02T08:00:00", "2": "2026-03-01T14:00:00"})
        looks(supervisor)
        assert (
            "0 of 2 workers are there; jobs 1, 2 wait: it waits until enough nodes are free (Resources), expected start "
            "2026-03-01 14:00:00\n"
        ) in capsys.readouterr().err


def test_no_job_is_too_few(slurm):
    slurm.most = 0
    with pytest.raises(SlurmError, match="policy; ask for fewer"), Supervisor(slurm, slurm, ClusterConfig(), 3):
        pytest.fail("there is no job")


def test_a_job_that_went_and_came_back_between_two_looks_began_anew(slurm, monkeypatch, capsys):
    with Supervisor(slurm, slurm, ClusterConfig(max_replacements=0), 1) as supervisor:
        looks(supervisor)
        at(monkeypatch, slurm.life_seconds)
        slurm.started["1"] = "12:10"
        looks(supervisor)
        told = "job 1 was requeued (preempted, or its node failed); it runs again"
        assert capsys.readouterr().err.count(told) == 1
        # It did not live long enough to have come to the end of its time.
        slurm.end("1", "COMPLETED")
        looks(supervisor)
        with pytest.raises(WorkError, match=r"^1 job was lost, and cluster.max_replacements is 0"):
            supervisor.look()


def test_a_job_whose_worker_is_there_is_not_lost_because_slurm_does_not_know_it(slurm):
    with Supervisor(slurm, slurm, ClusterConfig(), 1) as supervisor:
        looks(supervisor)
        slurm.states["1"] = None
        looks(supervisor, 5)
        assert list(slurm.states) == ["1"]


def test_jobs_are_cancelled_when_slurm_is_busy_and_when_nobody_listens(slurm, monkeypatch):
    refusals = 2
    told = []

    def busy(*command):
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise SlurmError("scancel did not answer within 30 s", "did not answer")
        told.append(command)

    def silent(*_, **__):
        raise SlurmError("squeue did not answer within 30 s", "did not answer")

    def deaf(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", deaf)
    with Supervisor(slurm, slurm, ClusterConfig(), 2) as supervisor:
        looks(supervisor)
        monkeypatch.setattr(_supervisor, "job_states", silent)
        monkeypatch.setattr(_supervisor, "run_slurm", busy)
    assert slurm.closed == 1
    assert told[-1] == ("scancel", "--quiet", "--name=geochip-test", f"--user={os.getuid()}")


def test_jobs_that_cannot_be_cancelled_are_told(slurm, monkeypatch, capsys):
    def refuse(*_):
        raise SlurmError("scancel: no", "no")

    with Supervisor(slurm, slurm, ClusterConfig(), 1):
        monkeypatch.setattr(_supervisor, "run_slurm", refuse)
    assert "jobs could not be cancelled (no): scancel --name=geochip-test; their workers end" in capsys.readouterr().err


def test_a_result_that_is_lost_with_its_worker_is_not_waited_for_in_silence():
    class Watch:
        advice = ""

        def look(self):
            if lost:
                raise WorkError("no worker is left")

    lost = []
    with LocalCluster(
        n_workers=1, threads_per_worker=2, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster, Client(cluster) as client, watched(client, Watch()):  # fmt: skip

        def on_result(*_):
            # Both have finished; one result is still where it was made.
            while any(state != "memory" for state in client.run_on_scheduler(states)):
                time.sleep(0.01)
            cluster.scale(0)
            while client.nthreads():
                time.sleep(0.01)
            lost.append(True)

        with pytest.raises(WorkError, match="no worker is left"):
            run_tasks(client, abs, [("a", (-1,)), ("b", (-2,))], on_result)


def states(dask_scheduler):
    return [task.state for task in dask_scheduler.tasks.values()]


def test_keys_of_a_driver_on_another_machine_go_when_it_gives_no_sign_of_life(tmp_path):
    for name in ("gone", "alive"):
        (tmp_path / f"{name}.example.org-1-1").mkdir(parents=True)
    os.utime(tmp_path / "gone.example.org-1-1", (time.time() - 3600,) * 2)
    _security.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["alive.example.org-1-1"]


def test_workers_that_are_too_full_for_a_task_are_not_waited_for_for_ever(monkeypatch, capsys):
    monkeypatch.setattr(_tasks, "_SILENT_SECONDS", 2)
    monkeypatch.setattr(_tasks, "_PAUSED_SECONDS", 1)
    # As if a worker had hardly more memory than its imports take.
    with dask.config.set({
        "distributed.worker.memory.pause": 0.01, "distributed.worker.memory.spill": False,
        "distributed.worker.memory.target": False, "distributed.worker.memory.terminate": False,
    }), LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", memory_limit="1GiB"
    ) as cluster, Client(cluster) as client:  # fmt: skip
        while not all(one["status"] == "paused" for one in client.scheduler_info(n_workers=-1)["workers"].values()):
            time.sleep(0.05)
        words = r"^no worker takes tasks: each is nearly full, with up to \d+ of 1024 MiB"
        with pytest.raises(WorkError, match=words):
            run_tasks(client, abs, [("a", (-1,))], print)
    assert re.search(words, capsys.readouterr().err, re.MULTILINE)
