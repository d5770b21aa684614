"""The run file, the flags, and what the system refuses."""

from told import Told

TOPIC = "Run file and system"

TOLD: dict[str, Told] = {
    "null": Told(
        message="null is not allowed: must be ...; leave the key out for its default, ...",
        meaning="A key of the run file stands there without a value, or a flag is null, and the key takes no null.",
        remedy="Give a value, or delete the line: the default named is taken then.",
    ),
    "type": Told(
        message="is not allowed: must be ...",
        meaning="A value of a run file or flag is of another type or size than its key takes.",
        remedy="Give what the line names after must be.",
    ),
    "quotes": Told(
        message="put it in quotes",
        meaning="YAML reads true, false and numbers as what they are, and the key takes text.",
        remedy='Write it in quotes: "5", "true".',
    ),
    "empty": Told(
        message="must not be empty",
        meaning="A text is empty, or blank: a variable of a script that was not set, often.",
        remedy="Give it, or leave the key out.",
    ),
    "batch": Told(
        message="so many times ... pixels take ... GiB of memory for each band and far more within the network",
        meaning="A batch of such chips or windows fits into no machine.",
        remedy="Lower the batch size to what the line names, or the window.",
    ),
    "twice": Told(
        message="stands twice (line ...); join them",
        meaning="A key stands twice in one section; YAML would keep the last one without a word.",
        remedy="Put both into one.",
    ),
    "no run file": Told(
        message="--config: ... cannot be read: ...; give the path of a run file",
        meaning="What --config names is missing, a directory, a pipe, or may not be read.",
        remedy="Name a file; a pipe's content can be saved to one.",
    ),
    "yaml": Told(
        message="it is no valid YAML: ...",
        meaning="The text cannot be read as YAML; the line and column say where.",
        remedy="Mind indentation, tabs, and quotes around what begins with { or *.",
    ),
    "refused file": Told(
        message="...: ...; ... and run the same command again: what is finished is kept",
        meaning="The system refused a file or directory while the command ran.",
        remedy="Do what stands after the semicolon.",
    ),
    "memory": Told(
        message="there is not enough memory ...; run it on a machine with more, or ask for less at once: ...",
        meaning="The process asked for more memory than the machine, or the job, has.",
        remedy="Lower the keys that are named, or ask for more memory.",
    ),
    "stdout": Told(
        message="standard output: what reads it has ended",
        meaning="The output went into a command, head say, that stopped reading.",
        remedy="Write it to a file, or read it to the end.",
    ),
}
