"""What is told of damaged stores, journals and locks."""

from told import Told

TOPIC = "Stores, journals and locks"
TOLD: dict[str, Told] = {
    "directory in store": Told(
        message="... is a directory, where a file of ... belongs; move it away and run again",
        meaning="Something else stands in the store at the name of one of its files; geochip does not remove it.",
        remedy="Move it away and run the same command again.",
    ),
    "journal line": Told(
        message="line ... is damaged (...); run python -m geochip.chipping again",
        meaning="A record of a finished task cannot be believed; what stands before and behind it counts.",
        remedy="Run the command again: the task is done anew, and the line is gone.",
    ),
    "journal line told": Told(
        message="warning: journal ...: line ... is damaged (...); what it recorded is done anew",
        meaning="The same, told by the run that does it.",
        remedy="Nothing.",
    ),
    "journal": Told(
        message="...journal ... put a copy of it back, or remove it and ... and run the same command again",
        meaning="The journal, which says what the store was made from and what is finished, is damaged or no file.",
        remedy="Put a copy back; or remove the journal and the store: both are made anew.",
    ),
    "lost block": Told(
        message="blocks of scene ... are lost: ... not there; run python -m geochip.infer again",
        meaning="A file of the prediction store is gone; the scene is not scored, since its pixels would count as nodata.",
        remedy="Run geochip.infer again: it predicts these blocks anew, and nothing else.",
    ),
    "damaged block": Told(
        message="..., a block of scene ..., is damaged (...); remove it and run python -m geochip.infer again",
        meaning="The checksum of a file of the prediction store does not fit.",
        remedy="Remove the file and run geochip.infer again.",
    ),
    "blocks again": Told(
        message="lost or damaged since it was predicted: ..., predicted anew",
        meaning="Files of the prediction store are gone, or others than the journal says.",
        remedy="Nothing.",
    ),
    "geotiff": Told(
        message="scene ...: ....tif ...; ...run python -m geochip.infer again, which writes it anew",
        meaning="A GeoTIFF is gone, cannot be read, or holds other classes than the prediction store.",
        remedy="Remove it, unless you changed it on purpose, and run geochip.infer again.",
    ),
    "scenes stay": Told(
        message="... scene (...) of the store that this run does not have: what is predicted of them stays",
        meaning="The prediction store has scenes that are not among those of this run.",
        remedy="Nothing; to be rid of them, remove the store and its journal and predict anew.",
    ),
    "others lost": Told(
        message="warning: blocks of ... are not predicted, or lost, and this run does not have them; run again with these scenes",
        meaning="What is lost can only be predicted from the images, and this run does not name them.",
        remedy="Run geochip.infer with these scenes too.",
    ),
    "lock": Told(
        message="..., which should name the process that writes ..., is damaged (...); if no process writes it, remove that lock and run the same command again",
        meaning="What stands at the lock's name was not written by geochip, or was edited.",
        remedy="See that no process writes the store, and remove the lock.",
    ),
}
