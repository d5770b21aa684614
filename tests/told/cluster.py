"""What a person is told of workers, batch scripts and ranks."""

from told import Told

TOPIC = "Workers, Slurm and ranks"
TOLD: dict[str, Told] = {
    "local_worker_died": Told(
        message="cluster.kind: local: a worker process ended, or said nothing, before it was ready",
        meaning="A worker of this machine was killed while the cluster started, most often because memory ran out.",
        remedy="Run the same command again, with fewer workers (`cluster.workers`) where it happens again.",
    ),
    "local_not_started": Told(
        message="cluster.kind: local: the workers cannot be started: ...; mend that",
        meaning="The machine refuses what a worker needs: a directory for temporary files, or one more open file.",
        remedy="Mend what is named (`TMPDIR`, `ulimit -n`), and run the same command again.",
    ),
    "not_one_line": Told(
        message="... is not allowed: must be one line of text, without line breaks or other control characters",
        meaning="The value goes into the scripts of jobs, to which a line break would add lines of its own.",
        remedy="Choose a name without it; lines of a shell belong into `prologue`.",
    ),
    "profile_not_one_line": Told(
        message="has ..., with a line break or another control character, by which a job's script would have lines",
        meaning="The same, in a profile of `cluster.profiles` or of Dask's own configuration.",
        remedy="Write it in one line; commands belong into `job_script_prologue`.",
    ),
    "logs_cannot_be_there": Told(
        message="cluster: Slurm's logs cannot be in ..., whose name has a backslash, a quotation mark or a control character",
        meaning="Slurm could not be told where the logs of workers go.",
        remedy="Name another `log_directory` in `cluster.cpu` and `cluster.gpu`, or another `run_dir`.",
    ),
    "second_training": Told(
        message="run_dir: ... is being written by process ... on ...; wait for it or end it (kill ... on ...), or choose another run_dir; if that process is gone, remove ...train.lock",
        meaning="Another training writes this `run_dir`: two would overwrite each other's checkpoints.",
        remedy="Wait for it, or end it (`touch run_dir/train/stop` keeps its last step), or train in another `run_dir`.",
    ),
    "step_refused": Told(
        message="sbatch refused the step ..., for the reason above; nothing of this submission is left in the queue; change ... in ... What it was asked: ...",
        meaning="Slurm does not take the job of a step: account, partition, time limit, memory or GPU.",
        remedy="Change the variable that is named, in `site.env`, and submit again.",
    ),
}
