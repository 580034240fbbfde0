"""The recipe of one run: `config.json`, read and written by both sides. Standard library only."""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from training.rlhf import compatibility
from training.rlhf.constitution_settings import AiPreferences, CritiqueRevision
from training.rlhf.method_settings import (
    EVALUATOR_KINDS,
    ConfigError,
    Distillation,
    Dpo,
    Grpo,
    JudgeAudit,
    Kto,
    Ppo,
    RejectionSampling,
    RewardFunction,
    RewardLearning,
    Rloo,
)
from training.rlhf.method_settings import check as _check
from training.rlhf.methods import METHODS
from training.rlhf.mixture_settings import MixedDataset, check_mixture
from training.rlhf.prompt_parts import NONE, PromptParts
from training.rlhf.reward_options import check_rewards
from training.rlhf.server_settings import ServedPolicy, Vllm, address_problem, is_address
from training.rlhf.tuning_settings import Tuning

__all__ = ["FORMAT", "HUB_ID", "ConfigError", "RunConfig", "Sampling", "Training", "Tuning", "upgraded"]

FORMAT = 2

# Left to the process that trains, which decides by its device before anybody reads it (__main__.settled).
_BY_DEVICE: Any = None


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of the optimisation; tokens and steps, not words and rows."""

    learning_rate: float = 1e-4
    epochs: float = 1.0
    max_steps: int = -1  # above 0: stop there, whatever `epochs` says
    batch_size: int = 16  # rows (pairs, rankings) on the device at once
    gradient_accumulation: int = 1
    warmup_ratio: float = 0.1
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 512  # tokens of prompt and completion together; longer rows are dropped and counted
    bf16: bool = _BY_DEVICE  # compute in bf16; null: where there is a GPU that can
    gradient_checkpointing: bool = False
    group_by_length: bool = False  # batches of rows of like length: less padding, another order
    log_every: int = 5  # steps
    save_every: int = 50  # steps
    # Early stopping (training.rlhf.early): evaluate on held-out rows and keep the best weights.
    evaluate_every: int = 0  # steps; 0: only at the end
    patience: int = 3  # evaluations in a row that are no better, then the run stops; 0: it never does
    min_delta: float = 0.0  # by how much an evaluation has to be better to count

    def __post_init__(self) -> None:
        _check(0 < self.learning_rate < 1, f"learning_rate is {self.learning_rate}: above 0, below 1")
        _check(0 < self.epochs <= 1000, f"epochs is {self.epochs}: above 0, at most 1000")
        _check(
            self.max_steps == -1 or self.max_steps >= 1, f"max_steps is {self.max_steps}: -1 or at least 1"
        )
        _check(1 <= self.batch_size <= 4096, f"batch_size is {self.batch_size}: from 1 to 4096")
        _check(1 <= self.gradient_accumulation <= 4096, "gradient_accumulation: from 1 to 4096")
        _check(0 <= self.warmup_ratio < 1, f"warmup_ratio is {self.warmup_ratio}: from 0 to below 1")
        _check(self.schedule in ("constant", "linear", "cosine"), f"schedule is {self.schedule!r}")
        _check(0 <= self.weight_decay < 1, f"weight_decay is {self.weight_decay}: from 0 to below 1")
        _check(self.max_grad_norm > 0, f"max_grad_norm is {self.max_grad_norm}: above 0")
        _check(
            8 <= self.max_length <= 1_000_000, f"max_length is {self.max_length}: from 8 to 1,000,000 tokens"
        )
        _check(self.log_every >= 1 and self.save_every >= 1, "log_every and save_every: at least 1 step")
        _check(0 <= self.evaluate_every <= 10_000_000, "evaluate_every: from 0 (never) to 10,000,000 steps")
        _check(0 <= self.patience <= 1000, f"patience is {self.patience}: from 0 (never stop) to 1000")
        _check(0 <= self.min_delta < 1000, f"min_delta is {self.min_delta}: from 0 to below 1000")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn, for a round and for evaluation."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    batch_size: int = 64

    def __post_init__(self) -> None:
        _check(0 <= self.temperature <= 5, f"sampling.temperature is {self.temperature}: from 0 to 5")
        _check(0 < self.top_p <= 1, f"sampling.top_p is {self.top_p}: above 0, at most 1")
        _check(1 <= self.max_new_tokens <= 100_000, "sampling.max_new_tokens: from 1 to 100,000")
        _check(1 <= self.batch_size <= 4096, "sampling.batch_size: from 1 to 4096")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run. `model` and the values of `policies` are folders or hub ids.

    Methods that train (training.rlhf.methods): learn from `data/`, starting from `model`, and evaluate on
        `data/*.test.jsonl`; a policy is compared with `model` itself as reference, and with `reward_model`
        (a folder) win rates are reported, and by each of `evaluators` (reward models together, a judge).
        Online methods learn from `rewards`.
    judge_audit: ask the judge among `rewards` about the comparisons of `data/`, beside what people said.
    Methods that make a dataset: `model` writes by the constitution in `data/constitution.json` to the prompts
        of `data/prompts.*.jsonl`.
    sample: write `completions.jsonl` for `data/requests.jsonl` with `policies` {name in requests: location}.

    `prompt_parts` stand before every prompt: of a sampling run's policies, by name; of `model`, by "model",
    where a run trains under them; of a distillation's teacher, by "teacher". `servers` say how a policy of a
    sampling run whose location is an address is asked, by name.
    """

    method: str
    seed: int = 0
    model: str = ""
    reward_model: str = ""
    policies: dict[str, str] = field(default_factory=dict)
    prompt_parts: dict[str, PromptParts] = field(default_factory=dict)
    servers: dict[str, ServedPolicy] = field(default_factory=dict)
    rewards: tuple[RewardFunction, ...] = ()
    mixture: tuple[MixedDataset, ...] = ()  # further datasets, in data/mixture/NAME/
    evaluators: tuple[RewardFunction, ...] = ()
    tuning: Tuning = field(default_factory=Tuning)
    training: Training = field(default_factory=Training)
    sampling: Sampling = field(default_factory=Sampling)
    reward_learning: RewardLearning = field(default_factory=RewardLearning)
    dpo: Dpo = field(default_factory=Dpo)
    kto: Kto = field(default_factory=Kto)
    ppo: Ppo = field(default_factory=Ppo)
    rloo: Rloo = field(default_factory=Rloo)
    grpo: Grpo = field(default_factory=Grpo)
    rejection_sampling: RejectionSampling = field(default_factory=RejectionSampling)
    distillation: Distillation = field(default_factory=Distillation)
    judge_audit: JudgeAudit = field(default_factory=JudgeAudit)
    vllm: Vllm = field(default_factory=Vllm)
    critique_revision: CritiqueRevision = field(default_factory=CritiqueRevision)
    ai_preferences: AiPreferences = field(default_factory=AiPreferences)
    format: int = FORMAT

    def __post_init__(self) -> None:
        _check(self.format == FORMAT, f"format is {self.format}: this version reads {FORMAT}")
        _check(self.method in METHODS, f"method is {self.method!r}: one of {', '.join(METHODS)}")
        _check(0 <= self.seed < 2**32, f"seed is {self.seed}: from 0 to 2**32 - 1")
        self._check_prompt_parts()
        if self.method == "sample":
            _check(bool(self.policies), "policies: a sampling run needs at least one")
            for name, location in self.policies.items():
                _check(isinstance(location, str), f"policies.{name} is {location!r}: a folder or hub id")
                problem = address_problem(location) if is_address(location) else ""
                _check(not problem, f"policies.{name} is {location!r}: {problem}")
            for name in self.servers:
                is_asked = is_address(self.policies.get(name, ""))
                _check(is_asked, f"servers.{name}: no policy of this name has an address")
            return
        _check(
            bool(self.model) or self.method == "judge_audit", "model: name the folder or hub id to start from"
        )
        check_mixture(self.mixture)
        _check(not is_address(self.model), f"model is {self.model!r}: what a server keeps cannot be trained")
        _check(not self.servers, "servers: only a sampling run asks them")
        if METHODS[self.method].needs_teacher:
            taught = self.distillation.teacher or self.distillation.system_prompt or self.parts_of("teacher")
            _check(bool(taught), "distillation.teacher and system_prompt: at least one of them")
        compatibility.check(
            self.method, self.tuning.kind, gradient_checkpointing=self.training.gradient_checkpointing
        )
        if self.method == "ai_preferences":
            _check(self.sampling.temperature > 0, "sampling.temperature is 0: two completions are to differ")
        _check(
            not self.training.evaluate_every or self.method != "rejection_sampling",
            "evaluate_every: rejection sampling learns from completions of its own, none of which are held "
            "out; set it to 0",
        )
        if METHODS[self.method].is_online:
            _check(bool(self.rewards), f"rewards: {self.method} needs at least one reward function")
            check_rewards(self.rewards)
        if self.method == "judge_audit":
            check_rewards(self.rewards)
            kinds = [reward.kind for reward in self.rewards]
            _check(kinds == ["judge"], "rewards: a judge audit asks one judge")
        check_rewards(self.evaluators, where="evaluators")
        for one in self.evaluators:
            _check(one.kind in EVALUATOR_KINDS, f"evaluators.{one.name}: {one.kind} prefers nothing")
        if self.method in ("rloo", "grpo"):
            self._check_groups()
        if self.method in DRAWS_BY_VLLM and self.vllm.use_vllm:
            sent = ", ".join(SENT_TO_VLLM)
            _check(
                self.tuning.kind in SENT_TO_VLLM,
                f"tuning.kind is {self.tuning.kind!r}: vLLM is sent whole weights, so one of {sent}",
            )
        if self.method == "ppo":
            own = self.sampling.top_p == 1 and self.sampling.temperature > 0
            _check(own, "sampling.top_p and temperature: PPO learns from the policy's own distribution, "
                   "so 1 and above 0")  # fmt: skip

    def parts_of(self, name: str = "model") -> PromptParts:
        """What stands before the prompts of a policy of this run; nothing for most."""
        return self.prompt_parts.get(name, NONE)

    def _check_prompt_parts(self) -> None:
        allowed = set(self.policies) if self.method == "sample" else PARTS_READ.get(self.method, {"model"})
        for name in self.prompt_parts:
            _check(name in allowed, f"prompt_parts.{name}: {self.method} has no policy of this name that "
                   "reads them")  # fmt: skip

    def _check_groups(self) -> None:
        """All completions of a prompt are in one step, where they are compared with each other."""
        section: Rloo | Grpo = getattr(self, self.method)
        at_once = self.training.batch_size * self.training.gradient_accumulation
        _check(
            at_once % section.completions_per_prompt == 0,
            f"{self.method}.completions_per_prompt is {section.completions_per_prompt}, which does not "
            f"divide the {at_once} completions of a step (batch_size times gradient_accumulation)",
        )
        _check(
            self.sampling.temperature > 0,
            f"sampling.temperature is 0: {self.method} compares completions that differ",
        )

    def to_json(self) -> dict[str, Any]:
        """What config.json holds: of the methods' own sections, only that of this method."""
        kept = METHODS[self.method].section
        whole = dataclasses.asdict(self)
        left_out = set(_OWN_SECTIONS) - {kept}
        left_out |= {name for name in ("prompt_parts", "servers") if not whole[name]}
        if self.method not in DRAWS_BY_VLLM:
            left_out.add("vllm")
        return {name: value for name, value in whole.items() if name not in left_out}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "RunConfig":
        """Build from parsed JSON. Raises ConfigError for unknown names, wrong types and refused values."""
        _check(isinstance(data, dict), "config: expected an object")
        values = upgraded(data)
        for name, kind in _SECTIONS.items():
            if name in values:
                values[name] = _section(kind, values[name], name)
        if "prompt_parts" in values:
            given = values["prompt_parts"]
            _check(isinstance(given, dict), "prompt_parts: expected an object")
            values["prompt_parts"] = {name: PromptParts.from_json(one) for name, one in given.items()}
        if "servers" in values:
            given = values["servers"]
            _check(isinstance(given, dict), "servers: expected an object")
            values["servers"] = {n: _section(ServedPolicy, one, f"servers.{n}") for n, one in given.items()}
        for name, kind in _LISTS.items():
            if name in values:
                listed = values[name]
                _check(isinstance(listed, list | tuple), f"{name}: expected a list")
                values[name] = tuple(
                    _section(kind, one, f"{name}.{number}") for number, one in enumerate(listed)
                )
        return _section(cls, values, "config")

    @classmethod
    def load(cls, path: Path) -> "RunConfig":
        return cls.from_json(json.loads(path.read_text(encoding="utf-8")))


_SECTIONS: dict[str, Any] = {
    item.name: item.default_factory
    for item in dataclasses.fields(RunConfig)
    if dataclasses.is_dataclass(item.default_factory)
}
_LISTS: dict[str, Any] = {"rewards": RewardFunction, "evaluators": RewardFunction, "mixture": MixedDataset}
_OWN_SECTIONS = {method.section for method in METHODS.values() if method.section}
# Methods that may draw by vLLM (the section `vllm`): TRL's own trainers.
DRAWS_BY_VLLM = ("rloo", "grpo")
SENT_TO_VLLM = ("full", "head", "freeze", "lora", "dora", "ia3")  # kinds that are, or merge into, weights
# Which policies' parts a training method reads, where that is not those of the policy it starts from.
PARTS_READ: dict[str, set[str]] = {"distillation": {"teacher"}, "pretraining": set(), "reward_model": set()}
# Settings that lay in `training` while there were two methods, and where they went.
_MOVED: dict[str, dict[str, tuple[str, ...]]] = {
    "dpo": {"dpo": ("beta", "sft_weight", "use_margin")},
    "reward_model": {"reward_learning": ("use_margin",)},
}


def upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """A recipe of format 1, or without a format, as one of this format. Changes nothing in place."""
    moved = _MOVED.get(str(data.get("method")), {})
    training = data.get("training")
    if data.get("format", 1) != 1 or not isinstance(training, dict):
        return dict(data)
    values = {**data, "format": FORMAT}
    for section, names in moved.items():
        found = {name: training[name] for name in names if name in training}
        given = data.get(section, {})
        values[section] = {**found, **given} if isinstance(given, dict) else given
    gone = {"beta", "sft_weight", "use_margin"} if moved or data.get("format") == 1 else set()
    return {**values, "training": {name: value for name, value in training.items() if name not in gone}}


_TYPES: dict[Any, tuple[type, ...]] = {
    int: (int,),
    float: (int, float),
    bool: (bool,),
    str: (str,),
    dict[str, str]: (dict,),
    dict[str, Any]: (dict,),
}


def _section(kind: Any, values: Any, where: str) -> Any:
    _check(isinstance(values, dict), f"{where}: expected an object")
    known = {item.name: item for item in dataclasses.fields(kind)}
    for name, value in values.items():
        _check(name in known, f"{where}.{name}: no such setting")
        wanted = _TYPES.get(known[name].type)
        may_be_left_open = value is None and known[name].default is None
        if wanted is not None and not may_be_left_open:
            fits = isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool))
            _check(fits, f"{where}.{name} is {value!r}: expected {wanted[-1].__name__}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
