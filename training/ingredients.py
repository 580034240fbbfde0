"""What a run may be made of: the datasets, policies and reward models that a project offers."""

from django.db.models import QuerySet

from labeling.models import Policy, PreferenceDataset, Project
from training.models import Artifact, Run

LEARNT_FROM = ("pairs", "rankings")  # tables of a dataset; from ratings alone nothing is trained yet


def can_be_learnt_from(dataset: PreferenceDataset) -> bool:
    """Whether it holds comparisons or rankings."""
    return any(table in dataset.manifest.get("tables", {}) for table in LEARNT_FROM)


def datasets_to_learn_from(project: Project) -> QuerySet[PreferenceDataset]:
    """The newest first."""
    return project.datasets.filter(manifest__tables__has_any_keys=LEARNT_FROM).order_by("-pk")


def trained_policies(project: Project) -> QuerySet[Policy]:
    """Policies that a run can start from: those whose model is known, the newest first."""
    return project.policies.exclude(location="").order_by("-pk")


def reward_models(project: Project) -> QuerySet[Artifact]:
    """Of complete runs, the newest first."""
    return (
        Artifact.objects.filter(
            run__project=project, run__state=Run.State.COMPLETE, kind=Artifact.Kind.REWARD_MODEL
        )
        .select_related("run__dataset")
        .order_by("-pk")
    )
