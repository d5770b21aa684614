"""Which networks segmentation-models-pytorch can build, and where pretrained encoder weights come from."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches

import torch

from geochip.errors import InputError

LINEAR = "linear"


def check_names(architecture: str, encoder: str) -> None:
    """Raise `InputError` for names that segmentation-models-pytorch does not know."""
    # Imported here, not above: it takes seconds, and "linear" does without.
    import segmentation_models_pytorch as smp
    import timm

    known = [LINEAR, *smp.MODEL_ARCHITECTURES_MAPPING]
    if architecture.lower() not in known:
        hint = _did_you_mean(architecture, known)
        raise InputError(f"model.architecture: {architecture!r} is not known{hint}; known are {', '.join(known)}")
    encoders = smp.encoders.get_encoder_names()
    if encoder.startswith("tu-"):
        if not timm.is_model(encoder.removeprefix("tu-")):
            hint = _did_you_mean(encoder, [f"tu-{name}" for name in timm.list_models()])
            raise InputError(
                f"model.encoder: timm knows no model {encoder.removeprefix('tu-')!r}{hint}; "
                "timm.list_models('*resnet*') lists those with resnet in their names"
            )
    elif encoder not in encoders:
        hint = _did_you_mean(encoder, [*encoders, *(f"tu-{name}" for name in timm.list_models())])
        raise InputError(
            f"model.encoder: {encoder!r} is not known{hint}; known are {', '.join(encoders[:6])} and "
            f"{len(encoders) - 6} more that segmentation_models_pytorch.encoders.get_encoder_names() lists, and "
            "tu- followed by the name of a timm model"
        )


def _did_you_mean(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def brief(error: BaseException) -> str:
    """What another package's error says, on one line and not endlessly."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def fetch_encoder_weights(encoder: str, encoder_weights: str) -> None:
    """Make sure that an encoder's pretrained weights are in this machine's cache; fetch them when they are not.

    To prepare a machine without a network, call it on one that shares the cache (the home directory, or HF_HOME).

    Args:
        encoder: as `model.encoder`.
        encoder_weights: as `model.encoder_weights`.

    Raises:
        InputError: when there are no such weights, or they are not cached and cannot be fetched.
    """
    check_names(LINEAR, encoder)
    _check_weights(encoder, encoder_weights)
    try:
        with without_network():
            _load(encoder, encoder_weights)
        return
    except OSError:
        pass  # not in the cache
    reason = _hub_unreachable()
    if reason is None:
        try:
            _load(encoder, encoder_weights)
            return
        except OSError as error:
            reason = brief(error)
    raise _not_cached(encoder, encoder_weights, f"and cannot be fetched ({reason});")


class WeightsNotCachedError(InputError):
    """There are such weights, but not on this machine."""


def require_cached_weights(encoder: str, encoder_weights: str, *, fetched: bool = False) -> None:
    """See that an encoder's pretrained weights are in this machine's cache; nothing is fetched.

    Args:
        encoder: as `model.encoder`.
        encoder_weights: as `model.encoder_weights`.
        fetched: whether the training that needs them will fetch them itself, for the error.

    Raises:
        WeightsNotCachedError: when they are not cached, with the command that fetches them.
        InputError: when there are no such weights.
    """
    check_names(LINEAR, encoder)
    _check_weights(encoder, encoder_weights)
    try:
        with without_network():
            _load(encoder, encoder_weights)
    except OSError:
        why = (
            "yet; training fetches them when it begins. Where it has no network,"
            if fetched
            else "and compute nodes mostly have no network to fetch them by;"
        )
        raise _not_cached(encoder, encoder_weights, why) from None


def _load(encoder: str, encoder_weights: str) -> None:
    import segmentation_models_pytorch as smp

    # The random numbers are left alone: whether weights were cached must not show in what is trained.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smp.encoders.get_encoder(encoder, weights=encoder_weights)


def _not_cached(encoder: str, encoder_weights: str, why: str) -> WeightsNotCachedError:
    return WeightsNotCachedError(
        f"model.encoder_weights: the {encoder_weights} weights of {encoder} are not in this machine's cache {why} "
        f"run this once on a machine with a network that shares the cache (your home directory, or HF_HOME):\n"
        f"    python -c \"import geochip.model as m; m.fetch_encoder_weights('{encoder}', '{encoder_weights}')\"\n"
        "or begin from random weights with --model.encoder_weights null"
    )


def _check_weights(encoder: str, encoder_weights: str) -> None:
    """Raise `InputError` when nobody publishes such weights."""
    import segmentation_models_pytorch as smp
    import timm

    if encoder not in smp.encoders.encoders:
        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"), allow_unregistered=True)
        known = ["imagenet"] if config is not None and config.has_weights else []
        # timm has one set of weights a name; what they are called here is of no account.
        if known:
            return
    else:
        known = list(smp.encoders.encoders[encoder].get("pretrained_settings") or {})
    if encoder_weights not in known:
        raise InputError(
            f"model.encoder_weights: there are no {encoder_weights!r} weights of encoder {encoder}; there are "
            f"{', '.join(known) or 'none at all'}, or null for random weights"
        )


@contextmanager
def without_network() -> Iterator[None]:
    """Let huggingface_hub use its cache alone: it would retry a network that is not there for minutes."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub_unreachable() -> str | None:
    """Why the place that weights come from does not answer; None when it does."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        get_hf_file_metadata(hf_hub_url("smp-hub/resnet50.imagenet", "config.json"), timeout=5)
    except HfHubHTTPError:
        return None  # it answers: what it says about the weights themselves will be told
    except Exception as error:  # one of whichever HTTP library this huggingface_hub uses
        return f"no answer from {constants.ENDPOINT}: {brief(error)}"
    return None
