"""What is told of squares of ground that divide scenes."""

from told import Told

TOPIC = "Splits in blocks of ground"

TOLD = {
    "blocks-too-few-squares": Told(
        message="split.block: squares of ... m put ... into ... of them, too few for the ... splits with a share; set ...",
        meaning="The squares are larger than what is to be divided, so that not every split can have one.",
        remedy="The setting that is named: it was tried, and every split has room for a chip with it.",
    ),
    "blocks-no-room": Told(
        message="split.block: squares of ... m divide ... into ... blocks, of which ... have room for a chip of ... pixels, "
        "too few for the ... splits with a share; set ...",
        meaning="The scenes are divided by squares in which hardly any chip fits.",
        remedy="The setting that is named: larger squares, or smaller chips where the image is too small for any squares.",
    ),
    "blocks-too-many": Told(
        message="split.block: squares of ... m divide ... into ... blocks, of which geochip takes at most ...; set ...",
        meaning="split.block is in metres on the ground; this one was perhaps meant in pixels or kilometres.",
        remedy="The side that is named.",
    ),
    "blocks-nothing-left": Told(
        message="split.buffer: in ... no chip of ... pixels lies farther than ... m from the blocks of other splits, none is "
        "left; set ...",
        meaning="Training keeps that far away from the blocks of other splits, and no ground lies so far away.",
        remedy="A smaller split.buffer, larger squares or smaller chips, as named.",
    ),
    "blocks-no-crs": Told(
        message="split.by: blocks needs to know where each scene lies, and ...; assign one to the image (gdal_edit.py -a_srs), or ...",
        meaning="Squares of ground are measured in metres, and nothing relates the image to the ground.",
        remedy="A CRS (gdal_edit.py -a_srs, and -a_ullr for the corners); or an area of interest for each split, in the "
        "image's own coordinates.",
    ),
    "blocks-no-grid-window": Told(
        message="chips.method: no window of the grid lies inside the blocks of ..., which are ... m wide; choose ...",
        meaning="A grid has few windows, and a block that lies turned on the pixels may hold none of them.",
        remedy="chips.method: random finds room wherever there is some; or a smaller stride, or larger squares.",
    ),
    "blocks-record-damaged": Told(
        message="scenes.parquet is damaged (...); remove it and run geochip.chipping again, which makes it anew (...)",
        meaning="The table says which scene, or which square of ground, belongs to which split, and cannot be read.",
        remedy="A copy of the table; or without it a new division, which is the same if the scenes are. If they are not, the "
        "chip store is of other scenes too, and goes with it.",
    ),
    "blocks-record-unreadable": Told(
        message="scenes.parquet could not be read (it is ..., not a regular file); remove it and run geochip.chipping again",
        meaning="Something else stands where geochip keeps its table of scenes.",
        remedy="Remove it; chipping writes the table anew.",
    ),
}
