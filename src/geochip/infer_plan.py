"""What an inference will do: the model, the scenes, and whether they go together.

Everything that can be known to fail is found here, before anything is written.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from geochip.blending import Sliding
from geochip.config import RunConfig, check_batch
from geochip.errors import InputError
from geochip.model import Contract, bundle_sha256, load_bundle
from geochip.progress import counted
from geochip.scenes import (
    Catalogue,
    Outputs,
    Scene,
    SetAside,
    Squares,
    describe_files,
    find_scenes,
    notice_lines,
    refuse_overwriting,
    scene_digest,
    set_aside,
)
from geochip.store import journal_path
from geochip.store.cog import cog_path

# A network copes with objects a little larger or smaller than those that it was trained on, not with any size.
_PIXEL_SIZE_TOLERANCE = 1.5
_SHOWN = 5
# Of one scene: the driver holds a record of each.
_MOST_BLOCKS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class InferPlan:
    """All that is known before the first pixel is read."""

    config: RunConfig
    contract: Contract
    model_sha256: str
    sliding: Sliding
    scenes: tuple[Scene, ...]
    """What will be predicted, with the bands that the model takes, in its order, and absolute paths."""
    bad: tuple[SetAside, ...]
    """Scenes whose header could not be read."""
    warnings: tuple[str, ...]
    """What a person should know and may have meant."""
    squares: Squares | None = None
    """Whose ground is whose, where squares of ground divide the scenes, which are predicted whole."""

    @property
    def notices(self) -> list[str]:
        """Lines on how files were taken, such as a band for alpha."""
        return list(notice_lines(self.scenes))

    @property
    def windows(self) -> int:
        """Number of windows of all scenes."""
        return sum(self.sliding.count(scene.height, scene.width) for scene in self.scenes)


def plan_inference(config: RunConfig, files: Sequence[str]) -> InferPlan:
    """Read the model and the scenes' headers, and hold one against the other.

    Args:
        config: the run file.
        files: images to predict; empty: the scenes of infer.split.

    Raises:
        InputError: when something is missing or does not fit.
    """
    sha256 = bundle_sha256(config.bundle_dir)
    # Loaded to see that it can be: better here than in every worker.
    _, contract = load_bundle(config.bundle_dir)
    sliding = sliding_of(config, contract)
    catalogue = _find(config, files)
    catalogue = set_aside(
        catalogue, [(scene, fault) for scene in catalogue.scenes if (fault := size_fault(scene, config.infer.block))]
    )
    scenes, misfits, doubts = fit_scenes(catalogue.scenes, contract, bands_chosen=config.data.bands is not None)
    catalogue = set_aside(catalogue, misfits)
    refuse_overwriting(config, catalogue, outputs_of(config, catalogue))
    return InferPlan(
        config=config,
        contract=contract,
        model_sha256=sha256,
        sliding=sliding,
        scenes=scenes,
        bad=catalogue.bad,
        warnings=(*catalogue.near, *doubts, *pixel_size_warnings(scenes, contract)),
        squares=catalogue.squares,
    )


def outputs_of(config: RunConfig, catalogue: Catalogue) -> Outputs:
    """What infer writes."""
    store, directory = config.prediction_store, config.cog_dir
    named = config.infer.store is not None
    files = {journal_path(store): "the journal"}
    if config.infer.cog:
        files |= {cog_path(directory, scene.scene_id): "a GeoTIFF of predictions" for scene in catalogue.scenes}
    return Outputs(
        option="infer.store" if named else "run_dir",
        remedy="choose another --infer.store" if named else "choose another run_dir, or set --infer.store",
        files=files,
        stores=(store, store.with_name(f"{store.name}.creating")),
        directory=directory if config.infer.cog else None,
    )


def size_fault(scene: Scene, block: int) -> str | None:
    """Why a scene has more blocks than can be kept account of; None when it has not."""
    count = math.prod(-(-length // block) for length in (scene.height, scene.width))
    if count <= _MOST_BLOCKS:
        return None
    return (
        f"{scene.image} has {scene.height} x {scene.width} pixels, {count} blocks of {block} x {block} (infer.block), "
        f"and one scene may have {_MOST_BLOCKS}; make infer.block larger, or divide the image (gdal_translate -srcwin)"
    )


def _find(config: RunConfig, files: Sequence[str]) -> Catalogue:
    if files:
        return describe_files(files, config)
    return find_scenes(config, [config.infer.split], need_labels=False)


def sliding_of(config: RunConfig, contract: Contract) -> Sliding:
    """The windows: by default of the size that the model was trained on, half a window apart.

    Raises:
        InputError: when the stride is larger than the model's chip size and no window is configured, or when no memory
            holds infer.batch_size windows.
    """
    size = config.infer.window or contract.chip_size
    stride = config.infer.stride or max(size // 2, 1)
    if stride > size:
        raise InputError(
            f"infer.stride: {stride} is not allowed: must be at most the window, which is the model's chip size of "
            f"{size} pixels, else pixels between windows get no prediction; lower it, or set --infer.window"
        )
    check_batch("infer.batch_size", config.infer.batch_size, size)
    return Sliding(
        size=size,
        stride=stride,
        blend=config.infer.blend,
        batch_size=config.infer.batch_size,
        classes=len(contract.class_names),
    )


def fit_scenes(
    scenes: Sequence[Scene], contract: Contract, *, bands_chosen: bool
) -> tuple[tuple[Scene, ...], list[tuple[Scene, str]], tuple[str, ...]]:
    """Choose from each scene the bands that the model takes.

    Args:
        scenes: as catalogued.
        contract: the model's.
        bands_chosen: the run file names the bands (data.bands), and so the scenes' bands are meant as they are, also
            where the files call them something that the model does not know. If not, they are found by the names of the
            model's bands, or by their numbers where either side has no names.

    Returns:
        The scenes that fit, with their bands in the model's order; those that do not, with the reason; and warnings
        where the order could not be verified.
    """
    fitted: list[Scene] = []
    misfits: list[tuple[Scene, str]] = []
    doubtful: list[Scene] = []
    renamed: list[Scene] = []
    for scene in scenes:
        chosen = scene if bands_chosen else _with_bands_of(contract, scene)
        other_names = _other_names(contract, chosen)
        if len(chosen.bands) != len(contract.bands) or (other_names and not bands_chosen):
            misfits.append((scene, _other_bands(contract, scene, bands_chosen=bands_chosen)))
        elif other_names & set(contract.band_names):
            misfits.append((scene, _other_order(contract, scene)))
        elif chosen.dtype != contract.dtype:
            reason = (
                f"{scene.image} has pixels of type {chosen.dtype}, the model was trained on {contract.dtype}, and the "
                "same number would mean another brightness; convert the file as the training scenes were, or train on "
                "such scenes"
            )
            misfits.append((scene, reason))
        else:
            if other_names:
                renamed.append(chosen)
            elif chosen.bands != contract.bands and chosen.band_names != contract.band_names:
                doubtful.append(chosen)
            fitted.append(chosen)
    return tuple(fitted), misfits, tuple(_doubts(contract, doubtful, renamed))


def _doubts(contract: Contract, doubtful: Sequence[Scene], renamed: Sequence[Scene]) -> Iterator[str]:
    if renamed:
        yield (
            f"{_scenes(renamed)}: the bands {', '.join(renamed[0].band_names)} are taken for "
            f"{', '.join(contract.band_names)}, which the model was trained on, as data.bands says; the names do not "
            "tell whether they mean the same"
        )
    if doubtful:
        yield (
            f"{_scenes(doubtful)}: bands {_numbers(doubtful[0].bands)} go into a model that was trained on bands "
            f"{_numbers(contract.bands)}; without band names in the files nothing tells whether they mean the same"
        )


def _with_bands_of(contract: Contract, scene: Scene) -> Scene:
    by_name = dict(zip(scene.band_names, scene.bands, strict=True))
    if all(name in by_name for name in contract.band_names):
        return replace(
            scene, bands=tuple(by_name[name] for name in contract.band_names), band_names=contract.band_names
        )
    by_number = dict(zip(scene.bands, scene.band_names, strict=True))
    if all(number in by_number for number in contract.bands):
        return replace(scene, bands=contract.bands, band_names=tuple(by_number[number] for number in contract.bands))
    return scene


def _other_names(contract: Contract, scene: Scene) -> set[str]:
    """Names of the scene's bands that stand where the model has a band of another name."""
    return {
        is_called
        for is_called, called in zip(scene.band_names, contract.band_names, strict=False)
        if is_called != called and not _unnamed(is_called) and not _unnamed(called)
    }


def _other_bands(contract: Contract, scene: Scene, *, bands_chosen: bool) -> str:
    """What to say of a scene whose bands are not those of the model."""
    wanted = len(contract.bands)
    found = (
        f"{scene.image} has the bands {', '.join(scene.band_names)}, the model takes {', '.join(contract.band_names)}, "
        "in this order"
    )
    if scene.count < wanted:
        return f"{found}: {counted(wanted, 'band')} where there {_are(scene.count)}; give it images that have them"
    if bands_chosen and len(scene.bands) != wanted:
        return f"{found}; name {counted(wanted, 'band')} with --data.bands, one for each of the model's"
    return (
        f"{found}; if they mean the same, name the numbers of the file's bands in the model's order, such as "
        f"--data.bands '{list(scene.bands[:wanted])}', or give the bands the model's names (set_band_description of "
        "rasterio)"
    )


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"


def _other_order(contract: Contract, scene: Scene) -> str:
    """What to say of a scene whose bands, as data.bands has chosen them, are the model's in another order."""
    known = dict(zip(scene.band_names, scene.bands, strict=True))
    order = [known[name] for name in contract.band_names if name in known]
    remedy = f"set --data.bands '{order}'" if len(order) == len(contract.bands) else "correct --data.bands"
    return (
        f"{scene.image} has the bands {', '.join(scene.band_names)} as data.bands chooses them, the model takes "
        f"{', '.join(contract.band_names)}, in this order; {remedy}, or leave data.bands out: bands are found by their "
        "names then"
    )


def _unnamed(name: str) -> bool:
    return re.fullmatch(r"band_\d+", name) is not None


def pixel_size_warnings(scenes: Sequence[Scene], contract: Contract) -> tuple[str, ...]:
    """A line on the scenes whose pixels are much larger or smaller than those of the training scenes."""
    if contract.pixel_size_range is None:
        return ()
    smallest, largest = contract.pixel_size_range
    far = [
        scene
        for scene in scenes
        if scene.pixel_size is not None
        and not smallest / _PIXEL_SIZE_TOLERANCE <= scene.pixel_size <= largest * _PIXEL_SIZE_TOLERANCE
    ]
    if not far:
        return ()
    sizes = sorted({f"{scene.pixel_size:.3g}" for scene in far if scene.pixel_size is not None}, key=float)
    trained = f"{smallest:.3g}" if f"{smallest:.3g}" == f"{largest:.3g}" else f"{smallest:.3g} to {largest:.3g}"
    return (
        f"{_scenes(far)}: pixels of {' to '.join({sizes[0]: 0, sizes[-1]: 0})} m, the model was trained on pixels of "
        f"{trained} m; what it finds there may be worth little: resample them (gdalwarp -tr), or train on such scenes",
    )


def _scenes(scenes: Sequence[Scene]) -> str:
    names = ", ".join(scene.scene_id for scene in scenes[:_SHOWN])
    more = f" and {len(scenes) - _SHOWN} more" if len(scenes) > _SHOWN else ""
    return f"scene{'s' if len(scenes) > 1 else ''} {names}{more}"


def _numbers(bands: Sequence[int]) -> str:
    return ", ".join(map(str, bands))


def predictions_depend_on(plan: InferPlan) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """What decides what the predictions are, to compare with what a rerun would make.

    Paths are left out: a data set that was moved gives the same predictions.

    Returns:
        The settings by name, and each scene's digests by id.
    """
    settings = {
        "the model's sha256": plan.model_sha256,
        "infer.window": plan.sliding.size,
        "infer.stride": plan.sliding.stride,
        "infer.blend": plan.sliding.blend,
        "infer.batch_size": plan.sliding.batch_size,
        "infer.block": plan.config.infer.block,
        "infer.probability": plan.config.infer.probability,
    }
    # The prediction of a scene that is divided is the same for each of its splits.
    scenes = plan.scenes if plan.squares is None else [replace(scene, split="") for scene in plan.scenes]
    return settings, {scene.scene_id: scene_digest(scene, with_label=False) for scene in scenes}
