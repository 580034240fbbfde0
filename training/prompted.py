"""A policy's parts on their way into a recipe, and back into the policy that a run makes."""

from typing import Any

from labeling.models import Policy
from training.models import Artifact, Run
from training.rlhf.config import PARTS_READ
from training.rlhf.prompt_parts import NONE, PromptParts


def parts_of(policy: Policy) -> PromptParts:
    """What stands before the policy's prompts."""
    if not policy.is_prompted:
        return NONE
    return PromptParts(system_prompt=policy.system_prompt, examples=tuple(policy.examples))


def prompt_version(policy: Policy) -> str:
    return parts_of(policy).version


def parts_in_training(method: str, policy: Policy, config: dict[str, Any]) -> dict[str, Any]:
    """The recipe's `prompt_parts` for a run that starts from a policy.

    Most methods train under its parts, which the new policy keeps. A distillation teaches the bare weights:
    its teacher reads the parts, those of the policy itself where no other teacher is named. A reward model
    reads what raters read, so it starts from the weights alone.
    """
    given = dict(config.get("prompt_parts") or {})
    if not policy.is_prompted:
        return given
    own = parts_of(policy).to_json()
    if method == "distillation":
        named = config.get("distillation", {}).get("teacher", "")
        return given if named or "teacher" in given else {**given, "teacher": own}
    return {**given, "model": own} if "model" in PARTS_READ.get(method, {"model"}) else given


def kept_by_candidate(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of the policy that a run with this recipe makes: the parts under which it learnt."""
    parts = config.get("prompt_parts", {}).get("model") or {}
    return {"system_prompt": parts.get("system_prompt", ""), "examples": list(parts.get("examples", []))}


def was_bare(run: Run) -> bool:
    """Whether the run's evaluation compares bare weights of a prompted policy, as a distillation's does."""
    is_prompted = run.policy is not None and run.policy.is_prompted
    return is_prompted and not (run.config.get("prompt_parts") or {}).get("model")


def weights_of(policy: Policy) -> Artifact | None:
    """The artifact that holds the policy's weights: its own, or that of whom it prompts. A query each."""
    seen: set[int] = set()
    one: Policy | None = policy
    while one is not None and one.pk not in seen and one.location == policy.location:
        found = Artifact.objects.filter(policy=one).select_related("run__dataset", "policy").first()
        if found is not None:
            return found
        seen.add(one.pk)
        one = one.parent
    return None
