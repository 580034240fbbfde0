"""Which kind of tuning goes with which method, asked before anything starts. Standard library only.

The recipe refuses what is refused here (training.rlhf.config), so the page and the API do too. That all other
pairs work is what `make matrix` shows, by running each pair; its table is docs/matrix.md.
"""

from training.rlhf.method_settings import ConfigError
from training.rlhf.methods import METHODS
from training.rlhf.tuning_settings import KINDS, PREFIXES, VIRTUAL_TOKENS


def why_not(method: str, kind: str, *, gradient_checkpointing: bool = False) -> str:
    """Why this method cannot train with this kind of tuning, a sentence; empty where it can.

    >>> why_not("dpo", "prefix")
    ''
    >>> why_not("dpo", "prefix", gradient_checkpointing=True)[:13]
    'Prefix tuning'
    """
    if not METHODS[method].trains:
        return ""  # nothing is trained
    if kind in PREFIXES and gradient_checkpointing:
        return (
            f"{KINDS[kind]} hands its keys and values to each layer as a cache, which gradient checkpointing "
            "throws away: turn gradient checkpointing off."
        )
    if method == "ppo" and kind in VIRTUAL_TOKENS:
        return (
            "PPO reads its policy, reference and values at the same places of one text, and virtual tokens "
            "would move them: choose LoRA, or RLOO, which needs no value model."
        )
    return ""


def check(method: str, kind: str, *, gradient_checkpointing: bool) -> None:
    """Raise ConfigError with the reason where the pair does not work."""
    reason = why_not(method, kind, gradient_checkpointing=gradient_checkpointing)
    if reason:
        raise ConfigError(f"tuning.kind is {kind!r} with {method}: {reason}")
