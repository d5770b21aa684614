"""The network, the data contract that it comes with, and both on disk."""

from geochip.model.bundle import bundle_sha256, check_bundle_dir, load_bundle, save_bundle
from geochip.model.encoders import WeightsNotCachedError, fetch_encoder_weights, require_cached_weights
from geochip.model.network import Contract, SegmentationModel, build_model, not_finite, rehearse

__all__ = [
    "Contract",
    "SegmentationModel",
    "WeightsNotCachedError",
    "build_model",
    "bundle_sha256",
    "check_bundle_dir",
    "fetch_encoder_weights",
    "load_bundle",
    "not_finite",
    "rehearse",
    "require_cached_weights",
    "save_bundle",
]
