"""Layers, values, nodata and other things that a label file may say in more than one way."""

from told import Told

TOPIC = "Labels, areas of interest and manifests"

TOLD = {
    "several layers": Told(
        message="holds ... layers, ..., and nothing says which is meant; name it with ...",
        meaning="A GeoPackage, geodatabase or the like has more than one layer with geometries; GDAL would take the first.",
        remedy="Name the layer: `labels.layer`, `chips.aoi_layer` or `split.manifest_layer`.",
    ),
    "no such layer": Told(
        message="has no layer ..., which ... asks for; it has ...: name one of them",
        meaning="The key names a layer that is not in the file, a folder that is not in the KML.",
        remedy="Correct the name, or set the key to null where the file has one layer.",
    ),
    "layer-without-geometries": Told(
        message="holds no geometries in layer ..., which ... asks for; it has ...: name one of them",
        meaning="The key names a table, such as the styles that QGIS keeps in a GeoPackage.",
        remedy="Name a layer with geometries, or set the key to null where the file has one.",
    ),
    "vector-without-crs": Told(
        message="label ... has no CRS while the image is in ...; ...",
        meaning="Nothing tells where the features lie: a shapefile without its .prj, or a GeoJSON with `\"crs\": null`.",
        remedy="Leave `\"crs\": null` out where the GeoJSON is in longitude and latitude, or name its CRS there; give other "
        "files theirs with `ogr2ogr -a_srs`.",
    ),
    "no layers": Told(
        message="is a GeoParquet, which holds one table and no layers; set ... to null",
        meaning="A layer is asked for in a format that has none.",
        remedy="Set the key to null.",
    ),
    "no value": Told(
        message="feature ... has no value of ...; say with labels.no_value what such features are",
        meaning="A feature's class is null, missing or blank.",
        remedy="`labels.no_value: ignore`, or the name of the class that such features are of.",
    ),
    "no property": Told(
        message="has no property ..., which labels.class_property asks for; it has ...",
        meaning="No feature of the file has the property that holds the class.",
        remedy="Correct `labels.class_property`; or say with `labels.no_value` what features without it are.",
    ),
    "nodata is a class": Told(
        message="declare... nodata ..., which is the id of class ...: such pixels count for nothing (255), as the file says",
        meaning="The value that the label files declare as nodata is also the id of a class.",
        remedy="If the pixels are of that class, name all values in `labels.class_map`, which wins over the file.",
    ),
    "hidden pixels": Told(
        message="% of the raster labels' pixels count for nothing (255): they have the value of a class that their file "
        "declares as nodata",
        meaning="As above, with the share of pixels that it concerns.",
        remedy="If the pixels are of that class, name all values in `labels.class_map`, and chip anew.",
    ),
    "absent class": Told(
        message="warning: no valid pixel of ... is of class ...",
        meaning="Training learns nothing of the class, or validation says nothing of it.",
        remedy="See whether labels lie on their scenes (`--preview`), and what `labels.class_map` and nodata values say.",
    ),
    "unnamed class": Told(
        message="labels.class_map maps no value to class ..., so no pixel will be of it",
        meaning="The map is given and names no value for one of `data.classes`.",
        remedy="Name its value in the map, or leave the class out of `data.classes`.",
    ),
    "no GeoParquet": Told(
        message="is a Parquet table but no GeoParquet: its metadata has no 'geo'",
        meaning="The file has columns and nothing that says which of them are geometries.",
        remedy="Write it with `GeoDataFrame.to_parquet` of GeoPandas, or as a GeoPackage.",
    ),
    "damaged GeoParquet": Told(
        message="could not be read as GeoParquet (...); mend or remove it",
        meaning="The file is cut short, or its metadata is not what the format asks for.",
        remedy="Copy or write the file again.",
    ),
    "shared label missing": Told(
        message="data.label: ... is not there, the one label file of all scenes",
        meaning="`data.label` has no `{id}`, so it is one file for many scenes, and it does not exist.",
        remedy="Correct the path, or write `{id}` into it where every scene has a label file of its own.",
    ),
    "shared raster": Told(
        message="It is one raster for all scenes; cut it onto the grid of each",
        meaning="`data.label` has no `{id}` and is a raster, which must have the pixels of its scene.",
        remedy="Cut it onto each scene's grid (`gdalwarp -r near -t_srs -te -ts`), and write `{id}` into `data.label`.",
    ),
    "several rasters": Told(
        message="holds ... rasters (...), and a raster label must be one",
        meaning="A TIFF of several pages, or a container with subdatasets; GDAL would take the first.",
        remedy="Write the one that is meant into a file of its own: `gdal_translate GTIFF_DIR:2:label.tif out.tif`.",
    ),
    "image of several rasters": Told(
        message="holds ... rasters (...), and an image must be one",
        meaning="A TIFF of several pages, or a container with subdatasets; GDAL would take the first, or none.",
        remedy="Write the one that is meant into a file of its own: `gdal_translate GTIFF_DIR:1:image.tif out.tif`.",
    ),
    "cut short": Told(
        message="is cut short: ... has ... bytes, and its header says ...; copy it again",
        meaning="A shapefile was not copied whole: GDAL would pass over the features that are missing.",
        remedy="Copy the file again.",
    ),
    "no whole XML": Told(
        message="is no whole XML (...), it may be cut short; copy it again",
        meaning="A GML ends before its last tag: GDAL would find no features in it.",
        remedy="Copy the file again.",
    ),
    "cannot be drawn": Told(
        message="has a geometry that cannot be drawn (coordinates are missing, or are no numbers)",
        meaning="A feature of a GeoJSON has a geometry that GDAL would pass over.",
        remedy="Mend the feature, or set its geometry to null where it is meant to have none.",
    ),
    "unreadable vector": Told(
        message="could not be read as a vector file (...); mend or remove it",
        meaning="The file is damaged, or of a format that this GDAL does not know.",
        remedy="Copy or convert the file (`ogr2ogr labels.gpkg FILE`).",
    ),
    "not a regular file": Told(
        message="could not be read (it is ..., not a regular file)",
        meaning="A named pipe, a socket or a directory stands where a file should; it would be waited for for ever.",
        remedy="Put the file there.",
    ),
}  # fmt: skip
