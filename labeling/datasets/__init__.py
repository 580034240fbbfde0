"""Preference datasets: labels of closed rounds -> comparisons -> rows -> frozen files and a manifest."""

from labeling.datasets.errors import FreezeError, FreezeFailed, InvalidFreeze, NothingToFreeze
from labeling.datasets.freezing import folder_of, freeze
from labeling.datasets.judgements import gate_outcomes, held_out_judgements, judgements_of
from labeling.datasets.made import Drafted, drafted
from labeling.datasets.manifest import DamagedDataset, Manifest, verify
from labeling.datasets.preview import RowPreview, first_rows

__all__ = [
    "DamagedDataset",
    "Drafted",
    "FreezeError",
    "FreezeFailed",
    "InvalidFreeze",
    "Manifest",
    "NothingToFreeze",
    "RowPreview",
    "drafted",
    "first_rows",
    "folder_of",
    "freeze",
    "gate_outcomes",
    "held_out_judgements",
    "judgements_of",
    "verify",
]
