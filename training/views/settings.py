"""A run's recipe as its page tells it: groups with a name, settings in the words of the form."""

from typing import Any

from training.forms import KINDS, RunForm
from training.models import Run
from training.rlhf.config import upgraded

GROUPS = {"training": "Training", "dpo": "DPO", "tuning": "Tuning", "sampling": "Sampling"}
WORDS = {
    "kind": "What is trained",
    "top_p": "Top p",
    "temperature": "Temperature",
    "max_new_tokens": "Longest completion",
}


def settings_in_words(run: Run) -> list[tuple[str, list[tuple[str, Any]]]]:
    """The groups that this method reads, each with its settings."""
    config = upgraded(run.config)
    return [
        (
            GROUPS[group],
            [(_label(name), _value(name, value)) for name, value in section.items()],
        )
        for group in _groups(run)
        if (section := config.get(group))
    ]


def _groups(run: Run) -> list[str]:
    """Sampling trains nothing, and a reward model writes nothing."""
    unread = {
        Run.Method.SAMPLE: {"training", "tuning"},
        Run.Method.REWARD_MODEL: {"sampling"},
    }
    return [group for group in GROUPS if group not in unread.get(Run.Method(run.method), set())]


def _label(name: str) -> str:
    field = RunForm.base_fields.get(name)
    return WORDS.get(name) or (field and str(field.label or "")) or name.replace("_", " ").capitalize()


def _value(name: str, value: Any) -> Any:
    """
    >>> _value("bf16", False), _value("bf16", None), _value("kind", "lora"), _value("epochs", 2.0)
    ('no', 'where a GPU can', 'LoRA adapters', 2.0)
    """
    if value is None:
        return "where a GPU can"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return KINDS.get(value, value) if name == "kind" else value
