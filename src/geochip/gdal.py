"""What holds for GDAL in every process: which errors it raises, and how much of rasters it keeps.

Its cache of raster blocks is one for a whole process, and by default a twentieth of the machine's memory.

On a node with a terabyte that is 50 GiB for each worker; and nothing here reads a block twice long after the first
time. So every module that reads or writes rasters begins by bounding it, whichever process it is in: a command's, a
worker's that geochip started, or that of a Dask cluster that was there before.
"""

from rasterio._err import CPLE_BaseError
from rasterio.env import get_gdal_config, set_gdal_config
from rasterio.errors import RasterioError

GDAL_ERRORS = (RasterioError, CPLE_BaseError, OSError)
"""What rasterio raises for a file that GDAL cannot read. Some properties let GDAL's own errors through, which are no
RasterioError and have no public name."""

CACHE_BYTES = 128 * 2**20


def bound_cache() -> None:
    """Let GDAL keep at most `CACHE_BYTES` of blocks in this process; a smaller bound (GDAL_CACHEMAX) stays."""
    # Both are those of GDALSetCacheMax: the value in force, and in bytes, whatever the environment says.
    if cache_in_force() > CACHE_BYTES:
        set_gdal_config("GDAL_CACHEMAX", CACHE_BYTES)


def cache_in_force() -> int:
    """How many bytes GDAL may keep in this process now."""
    return int(get_gdal_config("GDAL_CACHEMAX"))
