"""geochip: from labelled aerial scenes to a trained segmentation model and georeferenced predictions.

The commands are modules: `geochip.synthetic`, `geochip.chipping`, `geochip.train_ddp`, `geochip.infer` and
`geochip.evaluate`. From Python, `open_scene` opens one predicted scene as an xarray Dataset.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "open_scene"]

if TYPE_CHECKING:
    from geochip.store import open_scene


def __getattr__(name: str) -> Any:
    # Imported on first use: `import geochip` stays as light as a worker or a --help needs it.
    if name == "open_scene":
        from geochip.store import open_scene

        return open_scene
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
