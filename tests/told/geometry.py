"""What is told of labels and images that lie elsewhere, or nowhere."""

from told import Told

TOPIC = "Where labels and images lie"

TOLD = {
    "label-misses": Told(
        message="label ...: none of its features meets the image ...: they lie within ..., the image within ...",
        meaning="The file has features, and all of them lie elsewhere: the scene's chips would be background alone.",
        remedy="Compare the two bounds and follow the hint: exchange the axes, name the true CRS, or name the label that "
        "belongs to the image. A scene without objects has an empty label.",
    ),
    "split-missed": Told(
        message="split ...: no label meets its scene (see above; ...), and all chips would be background",
        meaning="So it is with every labelled scene of a split; nothing was written, or nothing may be trained on it.",
        remedy="Correct the labels, or `data.label`.",
    ),
    "evaluate-missed": Told(
        message="no label meets its scene (see above; ...), and the scores would be of background alone",
        meaning="evaluate compared nothing: every label lies elsewhere than its scene.",
        remedy="Correct the labels, or `data.label`.",
    ),
    "aoi-misses": Told(
        message="chips.aoi: no area of interest meets a scene of split ... (see above; ...), which would have no chip",
        meaning="The area, or all areas of the split's scenes, lie elsewhere.",
        remedy="Correct the area, leave the split out of `data.splits`, or set `chips.aoi` to null.",
    ),
    "no-geotransform": Told(
        message="... has the CRS ... and no geotransform, which is all that geochip uses",
        meaning="A CRS alone is no georeference: pixels would lie at (0, 0), (1, 0), ... of it.",
        remedy="Give the image its geotransform (`gdal_edit.py -a_ullr`, or a world file beside it).",
    ),
    "label-raster-nowhere": Told(
        message="label ... has no georeference, and its image has one",
        meaning="A raster label such as a PNG lies nowhere, so that nothing tells whether it is the image's.",
        remedy="Where it was drawn on the image's pixels, give it the image's georeference, as the message says.",
    ),
    "crs-member": Told(
        message="label ... has a crs member that is not understood: ...; write ...",
        meaning="A GeoJSON says something of its CRS that is neither null nor a name, and GDAL would take degrees.",
        remedy='Write `{"type": "name", "properties": {"name": "EPSG:32611"}}` with its CRS, or leave the member out for '
        "longitude and latitude.",
    ),
    "label-json": Told(
        message="label ... could not be read as a vector file (it is no valid JSON: ...); mend or remove it",
        meaning="The file begins like GeoJSON and does not end like it; it may be cut short.",
        remedy="Copy it again, or mend it.",
    ),
    "label-elsewhere": Told(
        message="... does not hold its features but says where GDAL finds them (...), and that may be any file or service",
        meaning="The file, whatever its name, describes data elsewhere: an OGR VRT, a service, a command of GDAL.",
        remedy="Copy the features into a file of their own (`ogr2ogr -f GPKG`) and name that.",
        page="security",
    ),
    "no-degrees": Told(
        message="... has coordinates such as ..., which are no degrees, but is in ...",
        meaning="The image's CRS counts degrees, and its corners are none.",
        remedy="Assign its true CRS (`gdal_edit.py -a_srs`).",
    ),
}
