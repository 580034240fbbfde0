"""What of a model is trained: the section `tuning` of a recipe. Standard library only.

Which kind goes with which method is in training.rlhf.compatibility; how each is applied in
training.rlhf.tuning.
"""

from dataclasses import dataclass
from typing import Literal

from training.rlhf.method_settings import check, check_choice, check_range

Kind = Literal[
    "full", "head", "freeze", "lora", "dora", "qlora", "bottleneck", "ia3",
    "prefix", "p_tuning_v2", "prompt", "p_tuning",
]  # fmt: skip

# In the order of pages. Papers: LoRA 2106.09685, DoRA 2402.09353, QLoRA 2305.14314, bottleneck adapters
# 1902.00751, IA3 2205.05638, prefix tuning 2101.00190, P-tuning v2 2110.07602, prompt tuning 2104.08691,
# p-tuning 2103.10385.
KINDS: dict[str, str] = {
    "full": "All weights",
    "head": "Output head only",
    "freeze": "All but the first layers",
    "lora": "LoRA",
    "dora": "DoRA",
    "qlora": "QLoRA (4-bit base)",
    "bottleneck": "Bottleneck adapters",
    "ia3": "IA3",
    "prefix": "Prefix tuning",
    "p_tuning_v2": "P-tuning v2",
    "prompt": "Prompt tuning",
    "p_tuning": "P-tuning",
}
LOW_RANK = ("lora", "dora", "qlora")
PREFIXES = ("prefix", "p_tuning_v2")  # keys and values before the text, in every layer
PROMPTS = ("prompt", "p_tuning")  # embeddings before the text
VIRTUAL_TOKENS = (*PREFIXES, *PROMPTS)
# What these learn cannot be added to the weights of a plain model: it is stored beside them.
BESIDE_THE_WEIGHTS = ("bottleneck", *VIRTUAL_TOKENS)
LORA_TARGETS = ("all-linear", "attention")


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is trained. A setting that does not belong to the kind has no effect."""

    kind: Kind = "full"
    frozen_layers: int = 1  # freeze: how many, from below; the embeddings stay with them
    lora_rank: int = 16  # lora, dora, qlora
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_targets: Literal["all-linear", "attention"] = "all-linear"
    double_quantisation: bool = True  # qlora: the scales of the 4-bit weights are quantised too
    paged_optimiser: bool = True  # qlora on a GPU: 8-bit AdamW whose state may leave the GPU's memory
    bottleneck_size: int = 16  # bottleneck: hidden units of an adapter
    virtual_tokens: int = 16  # prefix, p_tuning_v2, prompt, p_tuning

    def __post_init__(self) -> None:
        check_choice("tuning.kind", self.kind, tuple(KINDS))
        check_range("tuning.frozen_layers", self.frozen_layers, 1, 1000)
        check(1 <= self.lora_rank <= 1024, f"tuning.lora_rank is {self.lora_rank}: from 1 to 1024")
        check(self.lora_alpha >= 1, f"tuning.lora_alpha is {self.lora_alpha}: at least 1")
        check(0 <= self.lora_dropout < 1, f"tuning.lora_dropout is {self.lora_dropout}: from 0 to below 1")
        check_choice("tuning.lora_targets", self.lora_targets, LORA_TARGETS)
        check_range("tuning.bottleneck_size", self.bottleneck_size, 1, 16_384)
        check_range("tuning.virtual_tokens", self.virtual_tokens, 1, 4096)
