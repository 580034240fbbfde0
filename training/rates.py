"""PURE  The learning rate to begin with, by method, kind of tuning and size of the model.

Of all weights. SFT: 2e-5 up to 70 B in Llama 2 (2307.09288, section 3.1), 1e-5 is the careful end for 7 B.
Reward models: 1e-5, and 5e-6 at 70 B (the same, section 3.2.2; InstructGPT 2203.02155: 9e-6 at 6 B).
DPO: 5e-7 (Zephyr, 2310.16944); KTO: 5e-7 to 5e-6 (2402.01306). PPO, RLOO, GRPO: 1e-6 (2307.09288;
2402.14740; 2402.03300).

Of LoRA. SFT: 2e-4 at 7 and 13 B, 1e-4 at 33 and 65 B (QLoRA, 2305.14314, table 9). Preferences and rewards:
about ten times the rate of all weights, which is as far as both are apart in SFT: 1e-5, DPO 2e-5.

Others, as factors of LoRA's rate that give their papers' in SFT: IA3 3e-3 (2205.05638), P-tuning v2 5e-3
(2110.07602), prefix and p-tuning 1e-3, prompt tuning 1e-2 with AdamW (0.3 in 2104.08691 is Adafactor's),
bottleneck adapters 3e-4 (1902.00751), the head alone 1e-3.

All weights of small models (the starter of about 1 M parameters) were measured here: docs/starter.md,
docs/benchmarks.md. Their adapters' rates, and the factors outside SFT, are reasoned and not measured.
"""

from typing import NamedTuple

SMALL = 20_000_000  # parameters; below, rates are those of the starter
BILLION = 1_000_000_000
UNKNOWN = 7 * BILLION  # what a model is taken for whose size is not known


class Rates(NamedTuple):
    all_weights: float
    lora: float
    small: float  # all weights of a model as small as the starter


USUAL: dict[str, Rates] = {
    "sft": Rates(1e-5, 2e-4, 5e-4),
    "pretraining": Rates(1e-5, 1e-4, 5e-4),
    "rejection_sampling": Rates(1e-5, 1e-4, 5e-4),
    "distillation": Rates(1e-5, 1e-4, 5e-4),
    "reward_model": Rates(1e-5, 1e-4, 5e-4),
    "dpo": Rates(5e-7, 2e-5, 5e-4),
    "kto": Rates(5e-7, 2e-5, 5e-4),
    "ppo": Rates(1e-6, 1e-5, 2e-4),
    "rloo": Rates(1e-6, 1e-5, 6e-4),
    "grpo": Rates(1e-6, 1e-5, 8e-4),
}
OF_LORA = {
    "lora": 1.0,
    "dora": 1.0,
    "qlora": 1.0,
    "bottleneck": 1.5,
    "ia3": 15.0,
    "prefix": 5.0,
    "p_tuning_v2": 25.0,
    "prompt": 50.0,
    "p_tuning": 5.0,
    "head": 5.0,
}
SMALL_LORA = 4.0  # times the rate of all weights
MOST = 0.3


def usual_rate(method: str, kind: str, parameters: int | None = None) -> float:
    """The rate that a run begins with when nobody chose another; `parameters` None: not known.

    >>> usual_rate("sft", "full", 7_000_000_000), usual_rate("sft", "lora", 65_000_000_000)
    (1e-05, 0.0001)
    >>> usual_rate("dpo", "full"), usual_rate("sft", "ia3"), usual_rate("sft", "prompt")
    (5e-07, 0.003, 0.01)
    """
    rates, size = USUAL.get(method, USUAL["sft"]), parameters or UNKNOWN
    adapts = kind in OF_LORA
    if size < SMALL:
        rate = rates.small * (SMALL_LORA if adapts else 1.0)
    elif adapts:
        rate = rates.lora * (0.5 if size > 30 * BILLION else 1.0)
    else:
        rate = rates.all_weights * (2.0 if size < 1.5 * BILLION else 0.5 if size > 30 * BILLION else 1.0)
    return float(f"{min(rate * OF_LORA.get(kind, 1.0), MOST):.3g}")
