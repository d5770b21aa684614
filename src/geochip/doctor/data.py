"""Checks of what a run reads: the scenes, the splits, the network and its weights."""

import contextlib
import io
from collections.abc import Callable, Sequence

from geochip.chip_prepare import Prepared, judge_overlap
from geochip.chip_report import describe_squares, estimate
from geochip.doctor.findings import Case, Finding, fail, fails, listed, ok, warn
from geochip.errors import GeochipError, InputError
from geochip.infer_plan import plan_inference
from geochip.labels import listed as listed_misses
from geochip.model import WeightsNotCachedError, check_bundle_dir, rehearse, require_cached_weights
from geochip.progress import counted
from geochip.recheck import describe_doubtful
from geochip.scenes import notice_lines
from geochip.slurm import inside_a_job
from geochip.store import journal_path, other_scenes, read_journal, refuse_other


def scenes(case: Case) -> list[Finding]:
    """The plan of chipping, as --dry_run makes it."""
    what, plan, config = "scenes", case.plan, case.config
    if isinstance(plan, GeochipError):
        return fails(what, plan)
    found = []
    counts = {split.split: split.chips for split in plan.plan.splits}
    expected = estimate(plan.plan, len(plan.first.bands), plan.first.dtype, config.chips.size)
    found.append(
        ok(
            what,
            f"{counted(len({(one.scene_id, one.image) for one in plan.catalogue.scenes}), 'scene')} below "
            f"{config.data.root}, "
            f"{counted(plan.plan.chips, 'chip')} "
            f"({', '.join(f'{count} in {split}' for split, count in counts.items())}) in "
            f"{counted(expected.tasks, 'task')}",
        )
    )
    if line := describe_squares(plan.catalogue):
        found.append(ok("splits", line))
    found += notices(what, list(notice_lines(plan.catalogue.scenes)))
    found += bad_scenes(plan, config.data.max_bad_scenes)
    found += [warn("labels", doubt) for doubt in plan.doubts]
    found += [warn(what, text) for text in plan.catalogue.near]
    if left_out := [*plan.catalogue.unlabelled, *plan.catalogue.buffered]:
        found.append(warn(what, f"{len(left_out)} are left out: {left_out[0]}"))
    if plan.missed:
        text = " ".join(listed_misses(plan.missed.values()).splitlines())
        found.append(warn(what, f"{len(plan.missed)} missed by their files: {text}"))
    for name, key, option in (
        (config.train.split, "train.split", ""),
        (config.train.val_split, "train.val_split", ", or use --train.val_split null"),
    ):
        if name is not None and not counts.get(name):
            found.append(fail(what, f"{key}: split {name!r} has no chips to train with; put scenes into it{option}"))
    return found + overlap(case, plan) + finished_store(case, plan)


def notices(what: str, lines: Sequence[str]) -> list[Finding]:
    """What is told of how the scenes' files are taken."""
    judges = {"note": ok, "warning": warn}
    return [judges[level](what, text) for level, _, text in (line.partition(": ") for line in lines)]


def bad_scenes(plan: Prepared, allowed: int) -> list[Finding]:
    """Scenes that cannot be used: a run goes on without them, and ends with exit code 1 if they are too many."""
    bad = plan.catalogue.bad
    if not bad:
        return []
    count = len({(item.path, item.scene_id) for item in bad})
    text = f"{count} cannot be used: {listed(bad, 3)}"
    if count <= allowed:
        return [warn("scenes", f"{text}; data.max_bad_scenes = {allowed} allows it")]
    return [fail("scenes", f"{text}; mend them, or allow them with --data.max_bad_scenes {count}")]


def overlap(case: Case, plan: Prepared) -> list[Finding]:
    """Whether training chips show the ground of other splits."""
    if plan.overlap is None:
        return []
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told):
            judge_overlap(plan.overlap, case.config)
    except InputError as error:
        return fails("splits", error)
    return [warn("splits", line) for line in told.getvalue().splitlines()] or [
        ok("splits", f"no chip of {case.config.train.split} shows the ground of another split")
    ]


def finished_store(case: Case, plan: Prepared) -> list[Finding]:
    """Whether the chip store that is there, if any, is one that this run file goes on with."""
    store = case.config.chip_store
    known, records, _ = read_journal(journal_path(store))
    if not store.exists() or known is None:
        return []
    try:
        refuse_other(known, plan.header, records.unread_scenes(), store=store, option="chips.store")
    except InputError as error:
        return fails("chip store", error)
    _, doubtful = other_scenes(known, plan.header, records.unread_scenes())
    more = f"; {describe_doubtful(len(doubtful))}" if doubtful else ""
    there = f"{store} is there, with {len(records)} of {plan.plan.shards} shards; a run goes on with it"
    return [ok("chip store", f"{there}{more}")]


def predicted(case: Case) -> list[Finding]:
    """What inference would predict; with a trained model, whether the scenes fit it."""
    what, config, catalogue = "inference", case.config, case.to_predict
    if isinstance(catalogue, GeochipError):
        return fails(what, catalogue)
    scenes, bad, doubts = len(catalogue.scenes), catalogue.bad, catalogue.near
    notes = list(notice_lines(catalogue.scenes))
    windows = f"no model at {config.bundle_dir} yet"
    if config.bundle_dir.exists():
        try:
            plan = plan_inference(config, config.infer.files)
        except InputError as error:
            return fails(what, error)
        scenes, bad, doubts = len(plan.scenes), plan.bad, plan.warnings
        windows = f"{counted(plan.windows, 'window')} with the model {config.bundle_dir}"
    of = "infer.files" if config.infer.files else f"split {config.infer.split}"
    found = [ok(what, f"{counted(scenes, 'scene')} of {of}; {windows}")]
    if bad:
        judge = warn if len(bad) <= config.data.max_bad_scenes else fail
        found.append(judge(what, f"{len(bad)} cannot be predicted: {listed(bad, 3)}; mend them"))
    # What is said of the scenes already is said once.
    told = () if isinstance(case.plan, GeochipError) else case.plan.catalogue.near
    return found + notices(what, notes) + [warn(what, doubt) for doubt in doubts if doubt not in told]


def network(case: Case) -> list[Finding]:
    """Whether the network can be built, takes the chips, and finds its pretrained weights without a network."""
    what, model, config, built = "network", case.config.model, case.config, case.network
    if isinstance(built, GeochipError):
        return fails(what, built)
    try:
        check_bundle_dir(config.bundle_dir)
        # As training does: BatchNorm layers that keep what they know take one chip a batch.
        if not config.train.freeze_batchnorm:
            rehearse(built, batch_size=config.train.batch_size, chip_size=config.chips.size)
    except InputError as error:
        return fails(what, error)
    named = model.architecture if model.architecture == "linear" else f"{model.architecture} with {model.encoder}"
    weights = sum(one.numel() for one in built.parameters())
    found = [
        ok(
            what,
            f"{named}, {weights} weights; takes batches of {config.train.batch_size} chips of {config.chips.size} "
            f"x {config.chips.size} pixels",
        )
    ]
    return found + pretrained_weights(case)


def wanted_weights(case: Case) -> tuple[str, str] | None:
    """Encoder and name of the weights that training begins with; None where it begins with random ones."""
    model = case.config.model
    if model.encoder_weights is None or model.architecture == "linear" or isinstance(case.network, GeochipError):
        return None
    return model.encoder, model.encoder_weights


def pretrained_weights(case: Case) -> list[Finding]:
    """Whether this machine has the weights."""
    if (wanted := wanted_weights(case)) is None:
        return [ok("pretrained weights", "none are asked for")]
    # A person trains here then. A job is on a node that mostly has no network; so are those that cluster/ submits.
    fetched = case.config.cluster.kind in ("local", "address") and not inside_a_job()
    try:
        require_cached_weights(*wanted, fetched=fetched)
    except WeightsNotCachedError as error:
        return [no_weights(case, str(error), judge=warn if fetched else fail)]
    except InputError as error:
        return [no_weights(case, str(error))]
    return [ok("pretrained weights", f"{wanted[1]} of {wanted[0]} are in this machine's cache")]


def pretrained_weights_of_worker(case: Case, trouble: str | None, where: str) -> list[Finding]:
    """Whether a machine that trains has the weights.

    Args:
        case: the case.
        trouble: why it has none; "" where it has them; None where it was not asked.
        where: such as " on node1".
    """
    if (wanted := wanted_weights(case)) is None or trouble is None:
        return []
    if not trouble:
        return [ok("pretrained weights", f"{wanted[1]} of {wanted[0]} are in the cache{where}, which trains")]
    remedy = (
        "set HF_HOME to a directory on a disk that all nodes see, for the jobs too (cluster.gpu.prologue), and bind it "
        "into the image that they run in"
    )
    return [no_weights(case, f"{where.strip()}, which trains: {trouble}; {remedy}")]


def no_weights(case: Case, text: str, judge: Callable[[str, str], Finding] = fail) -> Finding:
    """The finding that weights are missing, which a finished model does without."""
    # One line: the command to run stands in the middle of it.
    text = " ".join(text.split())
    if (there := case.config.bundle_dir).exists():
        return warn("pretrained weights", f"{text} (not needed as long as {there} is used)")
    return judge("pretrained weights", text)
