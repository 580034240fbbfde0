"""Where a run stopped by itself, as a sentence of its page."""

from typing import Any

from training.results import number_in
from training.rlhf.held_out_figures import JUDGE

WORDS = {
    "eval_loss": "held-out loss",
    "eval_accuracy": "held-out accuracy",
    "eval_rewards/accuracies": "held-out accuracy",
    "eval_reward": "held-out reward",
    f"eval_rewards/{JUDGE}/mean": "reward by the held-out reward model",
}


def stopping_in_words(evaluation: dict[str, Any]) -> str:
    """What early stopping did; empty for a run without it. The evaluation is the child's: it may hold all.

    >>> stopping_in_words({"early_stopping": {"figure": "eval_loss", "best": 0.5, "best_step": 20,
    ...     "stopped_step": 35}})
    'Stopped early at step 35: best at step 20 (held-out loss 0.5). The weights are those of step 20.'
    """
    best, step = (number_in(evaluation, "early_stopping", name) for name in ("best", "best_step"))
    if best is None or step is None:
        return ""
    figure = WORDS.get(str(evaluation["early_stopping"].get("figure")), "held-out figure")
    stopped = number_in(evaluation, "early_stopping", "stopped_step")
    began = f"Stopped early at step {stopped:.0f}: best at step" if stopped else "It was best at step"
    return f"{began} {step:.0f} ({figure} {best:.4g}). The weights are those of step {step:.0f}."
