"""What a run may be made of: the datasets, policies and reward models that a project offers."""

from django.db.models import Case, QuerySet, When

from labeling.models import Policy, PreferenceDataset, Project
from training.models import Artifact, Run
from training.rlhf.methods import METHODS

RUNNABLE = tuple(name for name, method in METHODS.items() if method.tables)  # learn or measure from a dataset
TRAINABLE = tuple(name for name in RUNNABLE if METHODS[name].makes != "figures")  # what makes a model
MAKING = tuple(name for name, method in METHODS.items() if method.makes == "dataset")
OFFERED = (*RUNNABLE, *MAKING)  # on the page of a new run
LABELLED = ("pairs", "rankings", "ratings", "unpaired", "demonstrations", "texts")  # all but the prompts


def holds_labels(dataset: PreferenceDataset) -> bool:
    """Whether it holds more than the prompts, which every dataset does."""
    return any(table in dataset.manifest.get("tables", {}) for table in LABELLED)


def can_be_learnt_from(dataset: PreferenceDataset, method: str) -> bool:
    """Whether it holds at least one of the tables that the method learns from."""
    return any(table in dataset.manifest.get("tables", {}) for table in METHODS[method].tables)


def datasets_to_learn_from(project: Project, method: str) -> QuerySet[PreferenceDataset]:
    """The newest first; those of an AI last, so that none is taken unless somebody chooses it."""
    tables = list(METHODS[method].tables)
    if not tables:
        return project.datasets.none()
    last = Case(When(source=PreferenceDataset.Source.AI, then=1), default=0)
    return project.datasets.filter(manifest__tables__has_any_keys=tables).order_by(last, "-pk")


def tables_of(project: Project) -> set[str]:
    """Tables that at least one of its datasets holds. One query."""
    return {
        table
        for tables in project.datasets.values_list("manifest__tables", flat=True)
        for table in tables or {}
    }


def policy_method_for(dataset: PreferenceDataset) -> str:
    """The plainest method that makes a policy from this dataset: pairs say most, prompts are always there."""
    simplest = (Run.Method.DPO, Run.Method.KTO, Run.Method.SFT, Run.Method.PRETRAINING)
    return next((m for m in simplest if can_be_learnt_from(dataset, m)), Run.Method.PPO)


def trained_policies(project: Project) -> QuerySet[Policy]:
    """Policies that a run can start from: those whose model is here or on a hub, the newest first."""
    return project.policies.exclude(location="").exclude(location__contains="://").order_by("-pk")


def reward_models(project: Project) -> QuerySet[Artifact]:
    """Of complete runs, the newest first."""
    return (
        Artifact.objects.filter(
            run__project=project, run__state=Run.State.COMPLETE, kind=Artifact.Kind.REWARD_MODEL
        )
        .select_related("run__dataset")
        .order_by("-pk")
    )
