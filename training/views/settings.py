"""A run's recipe as its page tells it: groups with a name, settings in the words of the form."""

from typing import Any

from training.forms import combined, rewards
from training.forms.setting_fields import sections_of
from training.forms.setting_words import CHOICES, OF_KINDS, words_of
from training.forms.weights import in_words
from training.models import Artifact, Run
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
            [
                (_label(run, section, name), _value(section, name, value))
                for name, value in found.items()
                if _matters(config, f"{section}.{name}")
            ],
        )
        for section in sections
        if (found := config.get(section))
    ]
    return groups + _prompts_and_servers(config)


def _matters(config: dict[str, Any], key: str) -> bool:
    """Not a setting of another kind of tuning than the run's."""
    return key not in OF_KINDS or config.get("tuning", {}).get("kind") in OF_KINDS[key]


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
    names = _names_of_models(run)
    return [
        (reward["name"], reward["weight"], _content(reward, names))
        for reward in run.config.get("rewards") or []
    ]


def evaluators_in_words(run: Run) -> list[tuple[str, str]]:
    """Name and content of each that compares the run's policy with the one it came from."""
    names = _names_of_models(run)
    return [(one["name"], _content(one, names)) for one in run.config.get("evaluators") or []]


def _names_of_models(run: Run) -> dict[str, str]:
    """The run of each reward model that the recipe names among options; a query where it names one."""
    listed = [*(run.config.get("rewards") or []), *(run.config.get("evaluators") or [])]
    folders = {folder for one in listed for folder in _folders(one)}
    if not folders:
        return {}
    found = Artifact.objects.filter(run__project=run.project, folder__in=folders)
    return {one.folder: f"run {one.run_id}" for one in found}


def _folders(reward: dict[str, Any]) -> list[str]:
    options = reward.get("options") or {}
    named = [*options.get("models", []), options.get("helpfulness"), options.get("safety")]
    return [folder for folder in named if isinstance(folder, str) and folder]


def _content(reward: dict[str, Any], names: dict[str, str]) -> str:
    options = reward.get("options") or {}
    models = [names.get(folder, "a model that is gone") for folder in _folders(reward)]
    match reward["kind"]:
        case "ensemble":
            how = dict(combined.COMBINE).get(options.get("combine", "penalised"), "together").lower()
            return f"the models of {', '.join(models)}: {how}"
        case "gated" if len(models) == 2:
            below = options.get("threshold", 0.15)
            return f"helpfulness by {models[0]}, safety by {models[1]} where that is below {below}"
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
    if isinstance(value, dict):
        return in_words(value) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return CHOICES.get(f"{section}.{name}", {}).get(value, value)
    return value
