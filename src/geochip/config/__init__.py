"""The run file: one YAML file that every command reads, each key of which a command-line flag can override.

The dataclasses below are the grammar: field names are the keys, the line under a field is its help text, and
`__post_init__` holds what a value may be. jsonargparse turns them into flags, YAML and `--print_config`.
"""

from geochip.config._chips import ChipsConfig
from geochip.config._cluster import ClusterConfig, SlurmJobConfig, memory_mib, walltime_seconds
from geochip.config._data import NO_VALUE, RASTER_SUFFIXES, DataConfig, LabelsConfig, SplitConfig, by_text, is_number
from geochip.config._rules import (
    IGNORE,
    PROBABILITY_STEPS,
    Device,
    available_cpus,
    check_batch,
    one_line,
    shown,
)
from geochip.config._run import InferConfig, ModelConfig, RunConfig, TrainConfig
from geochip.config._values import fits, in_words, type_faults
from geochip.config._yaml import YamlError, read_yaml, write_yaml

__all__ = [
    "IGNORE",
    "NO_VALUE",
    "PROBABILITY_STEPS",
    "RASTER_SUFFIXES",
    "ChipsConfig",
    "ClusterConfig",
    "DataConfig",
    "Device",
    "InferConfig",
    "LabelsConfig",
    "ModelConfig",
    "RunConfig",
    "SlurmJobConfig",
    "SplitConfig",
    "TrainConfig",
    "YamlError",
    "available_cpus",
    "by_text",
    "check_batch",
    "fits",
    "in_words",
    "is_number",
    "memory_mib",
    "one_line",
    "read_yaml",
    "shown",
    "type_faults",
    "walltime_seconds",
    "write_yaml",
]
