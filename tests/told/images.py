"""Images: what their files declare, what is taken for something else, what is missing of them."""

from told import Told

TOPIC = "Images"

TOLD = {
    "alpha as mask": Told(
        message="... declared to be alpha, and taken as a mask: pixels where it is 0 have no data, and it is no band of the chips",
        meaning="The file says that this band is transparency. GDAL says so of the fourth band of most files of four "
        "bands of one byte, near infrared as well.",
        remedy="Nothing, if it is. If not: name all bands (`data.bands`), or set `data.alpha: band`, with which it is "
        "no mask either.",
    ),
    "alpha as band": Told(
        message="... declared to be alpha, and taken as a band like the others",
        meaning="`data.bands`, or `data.alpha: band`, says that it is a band; where it is 0 there is data.",
        remedy="Nothing, if that is meant. To have it say where data is, leave it out of `data.bands`.",
    ),
    "alpha unused": Told(
        message="... declared to be alpha, which data.alpha: band says it is not: it is not used",
        meaning="`data.bands` does not name it, and `data.alpha: band` keeps it from being a mask.",
        remedy="Name it in `data.bands` to use it, or set `data.alpha: mask`.",
    ),
    "alpha values": Told(
        message="what is taken as a mask does not look like one: ... of the alpha values that were looked at are neither nothing nor all",
        meaning="Transparency is nearly everywhere nothing or all. The band is most likely another channel.",
        remedy="Name all bands (`data.bands`), or set `data.alpha: band`.",
    ),
    "mask": Told(
        message="a mask, in the file or beside it (.msk), says which pixels have data",
        meaning="Pixels where the mask is 0 are 255 in the label; where there is a mask GDAL does not ask the nodata value.",
        remedy="Nothing, if that is meant; `gdal_translate -mask none` makes a file without it.",
    ),
    "nodata of each band": Told(
        message="bands have nodata values of their own (...): a pixel has no data where each holds its own",
        meaning="The bands declare different nodata values, and each is held against its own.",
        remedy="Nothing.",
    ),
    "nodata of some bands": Told(
        message="... has the nodata value ... and ... none: a pixel has no data where all of its bands say so, and so these values count as data",
        meaning="A band without a nodata value always has data, and with it every pixel.",
        remedy="Declare one for each band (`gdal_edit.py -a_nodata`, `<NoDataValue>` in a VRT), or leave bands out with `data.bands`.",
    ),
    "palette": Told(
        message="the values of ... are indices into a colour table, not brightness, and are taken as they are",
        meaning="The image is a palette image: neighbouring values need not be alike.",
        remedy="`gdal_translate -expand rgb` makes an image of three bands.",
    ),
    "scale": Told(
        message="... a scale or an offset (...), which is not applied: pixels are taken as they are stored",
        meaning="The stored numbers are not the physical values. That does no harm where all files have the same scale.",
        remedy="Where files differ in it: `gdal_translate -unscale -ot Float32` first.",
    ),
    "missing pixels": Told(
        message="...% of its pixels were never written, as when the program that wrote it was killed, or a mosaic has gaps; it declares no nodata value, and so they count as zeros",
        meaning="Blocks of the file hold nothing, or the files of a mosaic leave gaps.",
        remedy="Write the file again; or, if zeros are no data, `gdal_edit.py -a_nodata 0`.",
    ),
    "too many missing pixels": Told(
        message="...% of its pixels were never written, ... data.max_missing allows ...%",
        meaning="As above; the scene is set aside.",
        remedy="As above; or, if the zeros are meant, `--data.max_missing 1`.",
    ),
    "unwritten labels": Told(
        message="... with pixels that were never written, ... it declares no nodata value, and so they count as 0",
        meaning="Blocks of a raster label hold nothing, and read as the class of 0.",
        remedy="Write the label again; or `gdal_edit.py -a_nodata 255`, with which they count for nothing.",
    ),
    "control points": Told(
        message="the image has ... and no geotransform, which is all that geochip uses: its chips, or predictions, have no CRS and no place on the map",
        meaning="Ground control points, RPCs or geolocation arrays say where the image lies, and its pixels are on no grid of a CRS.",
        remedy="Warp it first: `gdalwarp`, with `-rpc` or `-geoloc` for those.",
    ),
    "control points and a label": Told(
        message="... and no geotransform, which is all that geochip uses, while label ... is in ..., so nothing tells where the label lies on the image",
        meaning="As above, and the label cannot be drawn.",
        remedy="Warp the image first (`gdalwarp`); `gdal_edit.py -a_srs` would not help.",
    ),
    "pixel type": Told(
        message="... has pixels of type ...; known are ...: ...",
        meaning="Chips, and tensors made of them, cannot have this type.",
        remedy="Convert the file as told (`gdal_translate -ot ...`).",
    ),
    "geotransform": Told(
        message="... has the geotransform (...), which gives its pixels no place",
        meaning="It holds NaN or infinity, or makes all pixels one point or line.",
        remedy="Write the right one into the file (`gdal_edit.py -a_ullr`).",
    ),
    "too large to chip": Told(
        message="... pixels, of which ... chips are asked for, and one scene may give ...",
        meaning="Their windows would not fit into memory; or the file says that it is larger than it is.",
        remedy="Ask for fewer (`chips.stride`, `chips.per_area`, `chips.method: random`), or divide the image.",
    ),
    "too large to predict": Told(
        message="... pixels, ... blocks of ... (infer.block), and one scene may have ...",
        meaning="Account of so many blocks does not fit into memory; or the file says that it is larger than it is.",
        remedy="Make `infer.block` larger, or divide the image.",
    ),
    "rotated scene": Told(
        message="the grid of scene ... is rotated, and rioxarray does not know rotation: rio.bounds(), rio.clip() and rio.reproject() of it are wrong",
        meaning="Rows and columns of the scene do not run along x and y.",
        remedy="Warp the GeoTIFF that geochip.infer writes onto a grid along x and y first (`gdalwarp`).",
    ),
    "no area": Told(
        message="has no CRS, so its pixels have no area in square metres",
        meaning="Nothing says how large a pixel is on the ground.",
        remedy="Assign a CRS to the image (`gdal_edit.py -a_srs`) and predict it again.",
    ),
}
