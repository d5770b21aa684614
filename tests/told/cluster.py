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
}
