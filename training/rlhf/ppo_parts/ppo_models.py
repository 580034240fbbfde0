"""What PPO reads completions with: the policy, its frozen reference, and the value model.

Weights of the policy itself (`full`, `head`, `freeze`, `bottleneck`): three models. The value model is a
reward model's body and head where the recipe has one (2203.02155, appendix C.4), else the policy's body under
a head of zeros; all of it is trained. Adapters (LoRA, DoRA, QLoRA, IA3): one copy of the base weights with an
adapter for the policy and one for the values; without either it is the reference.
The value adapter begins fresh under a head of zeros, also where there is a reward model: its body is another
model's, and a second copy is what adapters are there to save.

Dropout is off, also that of adapters: the ratio compares a network with itself a few updates ago.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.rlhf import loading, scoring
from training.rlhf.config import RunConfig
from training.rlhf.losses import policy_gradient
from training.rlhf.losses.token_logps import chosen_logps, token_entropies
from training.rlhf.tuning import loaded_dtype, peft_config, prepare, quantisation, without_dropout
from training.rlhf.tuning_kinds import adapters

Role = Literal["policy", "reference", "value"]
_ADAPTERS = {"policy": "default", "value": "value"}  # PEFT stores "default" without a folder of its own


@dataclass
class Models:
    """The three in one hand. `policy` writes and is what is saved; `trained` holds every weight that moves.

    `role` gives the model to read with, inside the block only; a backward pass belongs there too.
    """

    policy: PreTrainedModel
    reference: PreTrainedModel | None  # None: the policy without its adapters
    body: nn.Module  # of the value model: gives hidden states
    head: nn.Linear
    trained: dict[str, nn.Parameter]
    peft: Any = None
    layers: Sequence[BaseTunerLayer] = ()  # that hold adapters
    bf16: bool = False
    recomputes: bool = False

    @contextmanager
    def role(self, role: Role) -> Iterator[nn.Module]:
        # A block each: autocast remembers casts of weights, also of those that an optimiser changed since.
        with torch.autocast(self.policy.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            if self.peft is None:
                yield {
                    "policy": self.policy,
                    "reference": cast(nn.Module, self.reference),
                    "value": self.body,
                }[role]
            elif role == "reference":
                self.peft.base_model.disable_adapter_layers()
                try:
                    yield self.policy
                finally:
                    self.peft.base_model.enable_adapter_layers()
            else:
                for layer in self.layers:  # of PeftModel.set_adapter, which looks for them each time
                    layer.set_adapter(_ADAPTERS[role])
                yield self.policy if role == "policy" else self.body

    def recompute(self, on: bool) -> None:
        """Recompute activations in updates, where the recipe asks for it; one that writes needs its cache."""
        for module in (self.policy, self.body) if self.recomputes else ():
            module.train(on)

    def to_save(self) -> Any:
        """The policy alone. The value model cannot be read any more."""
        if self.peft is None:
            return self.policy
        self.peft.set_adapter(_ADAPTERS["policy"])
        self.peft.delete_adapter(_ADAPTERS["value"])
        return self.peft


def load(config: RunConfig, tokenizer: PreTrainedTokenizerBase, *, value_from: str | None) -> Models:
    """Models of a recipe, on their device. `value_from` is a reward model's folder."""
    policy = loading.load_policy(config.model, dtype=loaded_dtype(config), quantisation=quantisation(config))
    loading.fit(policy, tokenizer, where=config.model)
    models = (_adapters if peft_config(config, task="CAUSAL_LM") else _whole)(
        policy, config, tokenizer, value_from
    )
    for module in (models.policy, models.body):
        without_dropout(module)
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        module.eval()
        if config.training.gradient_checkpointing:
            models.recomputes = True
            cast(Any, module).activation_checkpointing_enable({"use_reentrant": False})
    return models


def _whole(
    policy: PreTrainedModel, config: RunConfig, tokenizer: PreTrainedTokenizerBase, value_from: str | None
) -> Models:
    reads_the_same = value_from is not None and _same_tokens(value_from, tokenizer)
    location = value_from if value_from is not None and reads_the_same else config.model
    value: Any = loading.load_reward_base(location, seed=config.seed)
    if not reads_the_same:
        nn.init.zeros_(value.score.weight)
    reference = copy.deepcopy(policy).requires_grad_(False)
    prepare(policy, config)  # the value model is trained whole in any case
    if config.training.bf16:
        _as_autocast_reads(reference)
    body = getattr(value, value.base_model_prefix)
    for model in (policy, reference, value):
        loading.use_device(model)
    trained = {f"policy.{name}": one for name, one in policy.named_parameters() if one.requires_grad}
    trained |= {f"value.{name}": weight for name, weight in body.named_parameters()}
    trained |= {f"head.{name}": weight for name, weight in value.score.named_parameters()}
    return Models(policy, reference, body, value.score, trained, bf16=bool(config.training.bf16))


def _adapters(
    policy: PreTrainedModel, config: RunConfig, tokenizer: PreTrainedTokenizerBase, value_from: str | None
) -> Models:
    without = replace(config, tuning=replace(config.tuning, lora_dropout=0.0))
    torch.manual_seed(config.seed)
    peft = get_peft_model(policy, cast(Any, peft_config(without, task="CAUSAL_LM")), _ADAPTERS["policy"])
    peft.add_adapter(_ADAPTERS["value"], cast(Any, peft_config(without, task="CAUSAL_LM")))
    head = nn.Linear(policy.config.get_text_config().hidden_size, 1, bias=False)
    nn.init.zeros_(head.weight)
    loading.use_device(policy)
    loading.use_device(head)
    trained = {
        f"{role}.{name}": weight
        for role, adapter in _ADAPTERS.items()
        for name, weight in policy.named_parameters()
        if f".{adapter}." in f"{name}."  # those of IA3 end so
    }
    for weight in trained.values():
        weight.data = weight.data.float()
    body = getattr(policy, policy.base_model_prefix)
    trained["head.weight"] = cast(nn.Parameter, head.weight)
    layers = [module for module in policy.modules() if isinstance(module, BaseTunerLayer)]
    bf16 = bool(config.training.bf16)
    return Models(policy, None, body, head, trained, peft=peft, layers=layers, bf16=bf16)


def _same_tokens(folder: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """May the policy's tokens be given to this reward model's weights? It may know more, as a padding token.

    What adapters beside its weights have learnt is not in them (training.rlhf.tuning_kinds.adapters).
    """
    if adapters.kind_beside(folder):
        return False
    return loading.load_tokenizer(folder).get_vocab().items() >= tokenizer.get_vocab().items()


def _as_autocast_reads(model: PreTrainedModel) -> None:
    """Linear layers in bf16, where autocast casts them anyway: the same numbers in half of the memory."""
    embedding = model.get_input_embeddings().weight
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight is not embedding:
            module.to(torch.bfloat16)


class Batch(NamedTuple):
    """Completions after their prompts, padded on the right, on the models' device."""

    ids: Tensor  # [rows, length]
    attention: Tensor  # [rows, length]
    first: int  # tokens of the shortest prompt: what is before teaches nothing
    places: Tensor  # [rows, tokens]: where in columns `first`.. each token of a completion stands
    mask: Tensor  # [rows, tokens]


def batch_of(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    pad_id: int,
    device: torch.device,
) -> Batch:
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    ids, attention = scoring.padded(rows, pad_id=pad_id)
    first = min(map(len, prompts))
    lengths = torch.tensor([len(completion) for completion in completions])
    steps = torch.arange(int(lengths.max()))
    mask = (steps < lengths[:, None]).float()
    offsets = torch.tensor([len(prompt) - first for prompt in prompts])
    places = (offsets[:, None] + steps) * mask.long()
    return Batch(ids.to(device), attention.to(device), first, places.to(device), mask.to(device))


class TokenFigures(NamedTuple):
    """Of each token of each completion, [rows, tokens]; 0 for padding."""

    logps: Tensor
    entropies: Tensor | None


def read_tokens(model: nn.Module, batch: Batch, *, temperature: float, entropy: bool) -> TokenFigures:
    """Log-probabilities at a temperature, and the entropies of the distributions that they come from."""
    # One more than there are tokens: the logits at a place speak of the next one.
    keep = batch.ids.shape[1] - batch.first + 1
    logits = model(
        input_ids=batch.ids, attention_mask=batch.attention, logits_to_keep=keep, use_cache=False
    ).logits[:, :-1]
    logps = chosen_logps(logits, batch.ids[:, batch.first :], temperature=temperature)
    entropies = None
    if entropy:
        with_gradient = torch.is_grad_enabled()
        entropies = (
            policy_gradient.entropy(logits.float() / temperature)
            if with_gradient
            else token_entropies(logits, temperature=temperature)
        )
    return TokenFigures(
        logps.gather(1, batch.places) * batch.mask,
        None if entropies is None else entropies.gather(1, batch.places) * batch.mask,
    )


def read_values(body: nn.Module, head: nn.Linear, batch: Batch) -> Tensor:
    """The value of the state before each token, [rows, tokens]; 0 for padding. In fp32, as it is compared."""
    hidden = body(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).last_hidden_state
    with torch.autocast(hidden.device.type, enabled=False):
        values = head(hidden[:, batch.first - 1 : -1].float())[..., 0]
    return cast(Tensor, values.gather(1, batch.places) * batch.mask)
