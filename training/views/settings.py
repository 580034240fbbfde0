"""A run's recipe as its page tells it: groups with a name, settings in the words of the form."""

from typing import Any

from training.forms import rewards
from training.forms.setting_fields import sections_of
from training.forms.setting_words import CHOICES, words_of
from training.models import Run
from training.rlhf.config import upgraded
from training.rlhf.methods import METHODS
from training.rlhf.prompt_parts import PromptParts

GROUPS = {"training": "Training", "tuning": "Tuning", "sampling": "Sampling", "vllm": "vLLM"}
PROMPTED = {"model": "the policy", "teacher": "the teacher"}
WORDS = {
    "tuning.kind": "What is trained",
    "sampling.top_p": "Top p",
    "sampling.temperature": "Temperature",
    "sampling.max_new_tokens": "Longest completion",
    "sampling.batch_size": "Batch size",
}


def settings_in_words(run: Run) -> list[tuple[str, list[tuple[str, Any]]]]:
    """The groups that this method reads, each with its settings."""
    config = upgraded(run.config)
    sections = ("sampling",) if run.method == Run.Method.SAMPLE else sections_of(run.method)
    groups = [
        (
            GROUPS.get(section, METHODS[run.method].label),
            [(_label(run, section, name), _value(section, name, value)) for name, value in found.items()],
        )
        for section in sections
        if (found := config.get(section))
    ]
    return groups + _prompts_and_servers(config)


def _prompts_and_servers(config: dict[str, Any]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """What stood before the prompts of which policy, and which of them servers keep."""
    versions = [
        (f"Version, of {PROMPTED.get(name, name)}", PromptParts.from_json(parts).version)
        for name, parts in config.get("prompt_parts", {}).items()
    ]
    servers = [
        (name, " · ".join(filter(None, (config["policies"].get(name), served.get("model")))))
        for name, served in config.get("servers", {}).items()
    ]
    return [(title, found) for title, found in (("Prompt", versions), ("Servers", servers)) if found]


def rewards_in_words(run: Run) -> list[tuple[str, float, str]]:
    """Name, weight and content of each reward that the run learns from."""
    return [
        (reward["name"], reward["weight"], _content(reward)) for reward in run.config.get("rewards") or []
    ]


def _content(reward: dict[str, Any]) -> str:
    options = reward.get("options") or {}
    match reward["kind"]:
        case "model":
            return "a reward model"
        case "judge":
            return f"a judge at {reward['location']}: {options.get('rubric', '')}".rstrip(": ")
        case "python":
            return str(options.get("function", ""))
        case kind:
            words = rewards.KINDS.get(kind, kind.replace("_", " ")).lower()
            return f"{words}: {rewards.in_words(kind, options)}".rstrip(": ")


def _label(run: Run, section: str, name: str) -> str:
    draws = METHODS[run.method].draws
    return WORDS.get(f"{section}.{name}") or words_of(section, name, draws=draws)[0]


def _value(section: str, name: str, value: Any) -> Any:
    """
    >>> _value("training", "bf16", False), _value("training", "bf16", None)
    ('no', 'where a GPU can')
    >>> _value("tuning", "kind", "lora"), _value("training", "epochs", 2.0)
    ('LoRA adapters', 2.0)
    """
    if value is None:
        return "where a GPU can"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return CHOICES.get(f"{section}.{name}", {}).get(value, value)
    return value
