"""The nouns of judging: read them in this order."""

from labeling.models.projects import Membership, Project, Protocol

from labeling.models.policies import Policy  # isort: skip
from labeling.models.prompts import Completion, Prompt
from labeling.models.rounds import Round, RoundClosed, RoundNotReady, Task, TaskItem

from labeling.models.labels import Assignment, Label, LostLease, RaterProgress, Skip  # isort: skip
from labeling.models.audits import Audit
from labeling.models.collections import Collection, Example
from labeling.models.constitutions import Constitution
from labeling.models.datasets import PreferenceDataset
from labeling.models.imports import Import

__all__ = [
    "Assignment",
    "Audit",
    "Collection",
    "Completion",
    "Constitution",
    "Example",
    "Import",
    "Label",
    "LostLease",
    "Membership",
    "Policy",
    "PreferenceDataset",
    "Project",
    "Prompt",
    "Protocol",
    "RaterProgress",
    "Round",
    "RoundClosed",
    "RoundNotReady",
    "Skip",
    "Task",
    "TaskItem",
]
