"""Runs that write data by a constitution: critique and revision, and preferences of a model.

They learn from nothing and train nothing: they take a policy, the project's prompts and one version of its
constitution. What comes of them is a dataset of its own source (training.made_datasets).
"""

from typing import Any

from django.conf import settings
from django.contrib.auth.models import User

from labeling.constitutions import in_full
from labeling.models import Constitution, Policy, Project, Prompt
from training.ingredients import MAKING, trained_policies
from training.models import Run
from training.recipe_checks import UNFIT, RunRefused, checked_recipe
from training.recipes import default_settings, merged


def create_run(
    *,
    project: Project,
    method: str,
    policy: Policy,
    constitution: Constitution,
    config: dict[str, Any] | None = None,
    created_by: User | None = None,
    start_when_ready: bool = False,
) -> Run:
    """A run by one of MAKING; a worker checks it first. Raises RunRefused.

    `config` holds the parts of a RunConfig that somebody chose: `seed`, `sampling`, the method's own section.
    """
    _check_parts(project, method, policy, constitution)
    chosen = {
        **merged(default_settings(method=method, policy=policy), config or {}),
        "method": method,
        "model": policy.location,
    }
    recipe = checked_recipe(chosen)
    _check_judge(project, recipe)
    return Run.objects.create(
        project=project,
        method=method,
        state=Run.State.CHECKING,
        config=recipe,
        policy=policy,
        constitution=constitution,
        created_by=created_by,
        start_when_ready=start_when_ready,
        then_next_round=False,
        message="Waiting for a worker to check it.",
    )


def has_prompts(project: Project) -> bool:
    """Whether there is anything to write to that may be trained on."""
    return project.prompts.filter(split=Prompt.Split.TRAIN).exists()


def words_of(constitution: Constitution) -> dict[str, Any]:
    """The constitution as a run's folder and a dataset's manifest keep it: everything that is asked by it."""
    return {
        "version": constitution.version,
        "principles": [dict(in_full(one)) for one in constitution.principles],
    }


def judge_name(run: Run) -> str:
    """Who judges: the name of a policy of the project, or an address; empty for a method without a judge."""
    if run.method != Run.Method.AI_PREFERENCES:
        return ""
    location = run.config["ai_preferences"]["judge"]
    if not location and run.policy is not None:
        return str(run.policy)
    policy = trained_policies(run.project).filter(location=location).first()
    return str(policy or location)


def _check_parts(project: Project, method: str, policy: Policy, constitution: Constitution) -> None:
    if method not in MAKING:
        raise RunRefused(f"{method!r} does not write by a constitution: {', '.join(MAKING)} do.")
    if policy.project_id != project.pk:
        raise RunRefused(f"The policy {policy} belongs to another project.")
    if not policy.location:
        raise RunRefused(f"The policy {policy} has no model: only its completions are known.")
    if constitution.project_id != project.pk:
        raise RunRefused(f"{constitution} belongs to another project.")
    if not has_prompts(project):
        raise RunRefused("The project has no prompts to write to. Import prompts first.")


def _check_judge(project: Project, recipe: dict[str, Any]) -> None:
    """A judge is loaded or called by the process that runs: as in training.rewards, not every one may be."""
    location = recipe.get("ai_preferences", {}).get("judge", "")
    if not location or location in settings.JUDGES:
        return
    if not trained_policies(project).filter(location=location).exists():
        raise RunRefused(
            f"{UNFIT} ai_preferences.judge is neither in RATCHET_JUDGES nor a policy of this project"
        )
