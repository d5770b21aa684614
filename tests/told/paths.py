"""Names that become paths: scene ids, templates, tables of scenes, and outputs that would be inputs."""

from told import Told

TOPIC = "Names and paths"

TOLD: dict[str, Told] = {
    "id-of-manifest": Told(
        message="split.manifest: ... has scene_id ... in row ..., which names files of the predictions and ...: put "
        "paths into a column image, and a plain name into scene_id",
        meaning="a scene's id becomes the name of its GeoTIFF, so it must be a plain file name of at most 251 bytes: "
        "no /, no \\, no control characters, not . or ..",
        remedy="paths go into the columns image and label, relative to data.root; scene_id holds a name",
    ),
    "id-of-file": Told(
        message="its id, ..., names files of the predictions and ...; rename the file",
        meaning="what stands at {id} in this file's name cannot name a file: it is too long, is not UTF-8, or holds a "
        "control character; the other scenes go on",
        remedy="rename the file, or allow for it with data.max_bad_scenes; a chip store that was made without it is made "
        "anew to have it",
    ),
    "two-spellings": Told(
        message="... and ... have the same name, spelt in two ways of Unicode; rename one of them",
        meaning="an umlaut may be one character or a letter and a mark; the names look alike and are two files",
        remedy="rename or remove one of them",
    ),
    "over-input": Told(
        message="... would be written over ..., which ... names; nothing was written: choose another",
        meaning="an output would have replaced a file of yours, by its path, a symbolic link or a hard link",
        remedy="another run_dir, --infer.store or --chips.store, as the message says",
        page="security",
    ),
    "beside-input": Told(
        message="files would be written to ..., where ... lies, which ... names; nothing was written",
        meaning="the directory of the GeoTIFFs is one that holds your images or labels, perhaps by a symbolic link",
        remedy="another run_dir or --infer.store; or remove the link",
        page="security",
    ),
    "would-be-image": Told(
        message="... would be taken for an image by data.image; nothing was written",
        meaning="the output would lie where data.image finds images, and be one of them in the next run",
        remedy="another run_dir, outside of data.root",
        page="security",
    ),
    "foreign-directory": Told(
        message="... is a symbolic link where geochip makes a directory of its own; remove it, or choose another",
        meaning="geochip removes what killed runs left under such names, and follows no link in doing so",
        remedy="remove the link",
        page="security",
    ),
    "output-is-directory": Told(
        message="... is a directory, and ... would be a file of that name; nothing was written",
        meaning="a directory stands where a file is to be written",
        remedy="move it away, or choose another run_dir",
    ),
    "store-name": Told(
        message="is not allowed: a store needs a name of its own, as in run/chips.zarr",
        meaning="chips.store or infer.store is ., .. or empty: the journal and the lock beside it are named after it",
        remedy="give the path of the store itself",
    ),
    "backslash": Told(
        message="must not hold a backslash, which tensorstore takes for /",
        meaning="the pixels would be written to another directory than the rest of the store",
        remedy="choose a path without one",
    ),
    "near-files": Told(
        message="nearly fit data.image (...) and are left out, the first is ...: --data.image '...' would take them",
        meaning="files differ from the template by their suffix or by capital letters alone (.TIF, .tiff, .JP2)",
        remedy="give that template, rename the files, or list all of them in a table (split.by: manifest)",
    ),
    "near-label": Told(
        message="nearly fits data.label (...) and is left out, namely ...: --data.label '...' would take it",
        meaning="a scene has no label, and a file that differs from data.label by its suffix or by capital letters alone",
        remedy="as for images",
    ),
    "similar-file": Told(
        message="is no file; there is ..., so correct the name",
        meaning="a file that a table or data.stack names is not there; one that differs by suffix or case alone is",
        remedy="correct the name in the table or the template",
    ),
    "same-stem": Told(
        message="lists images of one name, scene ... of ..., in row ... and in row ..., and without ids a scene is "
        "called by its image's name: add a column scene_id that gives each row a name of its own",
        meaning="tile_1/image.tif and tile_2/image.tif are two scenes that would both be called image",
        remedy="add a column scene_id to the table",
    ),
    "manifest-cell": Told(
        message="split.manifest: ... has a ... in its column ..., row ..., and only a text or a number names a scene or a "
        "file; correct the table",
        meaning="a cell holds a list, bytes or a structure",
        remedy="write one name into each cell",
    ),
    "aoi-missing": Told(
        message="chips.aoi: ... could not be read (No such file or directory)",
        meaning="the area of interest of a scene is not there; its path is relative to data.root",
        remedy="correct chips.aoi, or set it to null",
    ),
    "bands-named-otherwise": Told(
        message="has the bands ..., the model takes ..., in this order; if they mean the same, name the numbers of the "
        "file's bands in the model's order, such as --data.bands '...'",
        meaning="the file's bands have other names than those that the model was trained on",
        remedy="choose them with data.bands, which is then taken as meant, with a warning; or describe them in the file",
    ),
    "bands-in-another-order": Told(
        message="has the bands ... as data.bands chooses them, the model takes ..., in this order; set --data.bands "
        "'...', or leave data.bands out",
        meaning="data.bands puts the model's own bands in another order",
        remedy="the order that the message gives, or none",
    ),
    "bands-too-few": Told(
        message="has the bands ..., the model takes ..., in this order: ... bands where there ...; give it images that "
        "have them",
        meaning="the file has fewer bands than the model was trained on",
        remedy="other images, or a model of these bands",
    ),
    "stranger-without-label": Told(
        message="it belongs to no split, and there is no ...",
        meaning="an image that was named on the command line has no label where data.label looks for its name",
        remedy="put the label there, or give --data.label and --data.root as they fit",
    ),
    "stranger-with-labels": Told(
        message="it belongs to no split, and there are several labels of its name (...); give data.label without {split}",
        meaning="an image that was named on the command line may be compared with the label of more than one split",
        remedy="--data.label with the split's name in place of {split}",
    ),
}
