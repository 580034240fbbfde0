"""Every kind of tuning trains what it names and no more, and is stored so that it says the same again."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402

from tests.training_rlhf.conftest import MakeRun, in_bf16, stored_dtypes  # noqa: E402
from training.rlhf import dpo, fitting, loading, recipe, reward_model, scoring, tuning  # noqa: E402
from training.rlhf.config import RunConfig, Training, Tuning  # noqa: E402
from training.rlhf.data import read_for_dpo, read_for_reward_model  # noqa: E402
from training.rlhf.failures import Refused  # noqa: E402
from training.rlhf.model_files import causal_config  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, RunDir  # noqa: E402
from training.rlhf.tuning_kinds.trained_share import count  # noqa: E402
from training.rlhf.tuning_settings import BESIDE_THE_WEIGHTS, KINDS, PREFIXES, VIRTUAL_TOKENS  # noqa: E402

BEGIN_AT_THE_BASE = [kind for kind in KINDS if kind not in VIRTUAL_TOKENS]
SHORT = {"max_steps": 3, "learning_rate": 1e-2, "warmup_ratio": 0.0}


def trainer_of(run_dir: RunDir) -> Any:
    """As the recipe makes it, before the first step."""
    config = RunConfig.load(run_dir.config)
    tokenizer = loading.load_tokenizer(config.model)
    numbers: Any = {"dtype": tuning.loaded_dtype(config), "quantisation": tuning.quantisation(config)}
    is_dpo = config.method == "dpo"
    model = (
        loading.load_policy(config.model, **numbers)
        if is_dpo
        else loading.load_reward_base(config.model, seed=config.seed, **numbers)
    )
    loading.fit(model, tokenizer, where=config.model)
    read = read_for_dpo if is_dpo else read_for_reward_model
    method: Any = dpo if is_dpo else reward_model
    return method.make_trainer(
        model=model,
        tokenizer=tokenizer,
        train=read(run_dir, "train"),
        test=[],
        config=config,
        run_dir=run_dir,
    )


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def train(run_dir: RunDir) -> None:
    recipe.train(run_dir, RunConfig.load(run_dir.config), ProgressWriter(run_dir))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["dpo", "reward_model"])
def test_what_the_kind_names_is_trained_and_nothing_else(method: str, kind: str, make_run: MakeRun) -> None:
    run_dir = make_run(method, pairs=12, tuning={"kind": kind}, training=SHORT)
    trainer = trainer_of(run_dir)
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    assert {name for name, weight in after.items() if not torch.equal(weight, before[name])} == trained
    assert all(after[name].dtype == torch.float32 for name in trained)
    assert all(math.isfinite(loss) for loss in losses(trainer))
    config = RunConfig.load(run_dir.config)
    assert sum(after[name].numel() for name in trained) == count(config, causal_config(config.model)).trained


@pytest.mark.parametrize("kind", BEGIN_AT_THE_BASE)
def test_a_policy_that_has_not_moved_is_its_own_reference(kind: str, make_run: MakeRun) -> None:
    trainer = trainer_of(make_run("dpo", pairs=8, tuning={"kind": kind}, training=SHORT | {"max_steps": 1}))
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("kind", VIRTUAL_TOKENS)
def test_what_virtual_tokens_put_out_is_no_part_of_the_loss(
    kind: str, tiny_policy: Path, make_run: MakeRun
) -> None:
    """The first loss of four pairs, from log-probabilities of the completions; the reference is the base."""
    trainer = trainer_of(make_run("dpo", pairs=4, tuning={"kind": kind}, training=SHORT | {"max_steps": 1}))
    trainer.model.eval()
    rows = trainer.train_dataset
    sums: dict[str, torch.Tensor] = {}  # of each completion: [pairs]
    for whose, model in (("policy", trainer.model), ("base", loading.load_policy(str(tiny_policy)))):
        for name in ("chosen", "rejected"):
            logps = scoring.completion_logprobs(
                model, list(rows["prompt_ids"]), list(rows[f"{name}_ids"]), pad_id=0
            )
            sums[f"{whose} {name}"] = torch.stack([one.sum() for one in logps])
    moved = sums["policy chosen"] - sums["base chosen"] - sums["policy rejected"] + sums["base rejected"]
    expected = -torch.nn.functional.logsigmoid(0.1 * moved)
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(float(expected.mean()), abs=1e-5)
    assert abs(losses(trainer)[0] - math.log(2)) > 1e-4  # they do say something


class Talk(NamedTuple):
    prompts: list[list[int]]
    completions: list[list[int]]


TALK = Talk([[1, 3, 40, 50, 60], [1, 3, 70]], [[80, 90, 100, 2], [110, 2]])


def says(model: Any) -> torch.Tensor:
    return torch.cat(scoring.completion_logprobs(model, TALK.prompts, TALK.completions, pad_id=0))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "qlora"])
def test_a_stored_policy_says_what_the_trained_one_said(
    kind: str, tiny_policy: Path, make_run: MakeRun
) -> None:
    run_dir = make_run("dpo", pairs=12, tuning={"kind": kind}, training=SHORT)
    config, tokenizer = RunConfig.load(run_dir.config), loading.load_tokenizer(str(tiny_policy))
    trainer = trainer_of(run_dir)
    trainer.train()
    trainer.model.eval()
    said = says(trainer.model)
    fitting.save_trained(trainer, tokenizer, run_dir=run_dir, config=config)
    assert (run_dir.model / "adapter.json").exists() == (kind in BESIDE_THE_WEIGHTS)
    stored = loading.load_policy(str(run_dir.model))
    assert says(stored) == pytest.approx(said, abs=1e-4)
    assert not any(one.requires_grad and one.grad is not None for one in stored.parameters())
    assert float((said - says(loading.load_policy(str(tiny_policy)))).abs().max()) > 1e-3


def test_what_qlora_learnt_is_merged_into_the_whole_base_and_not_into_4_bits(
    tiny_policy: Path, make_run: MakeRun
) -> None:
    run_dir = make_run("dpo", pairs=12, tuning={"kind": "qlora"}, training=SHORT)
    train(run_dir)
    stored = loading.load_policy(str(run_dir.model))
    base = loading.load_policy(str(tiny_policy))
    beside: Any = PeftModel.from_pretrained(base, str(run_dir.path / "adapter"))
    assert says(stored) == pytest.approx(says(beside), abs=1e-4)
    embeddings = "model.embed_tokens.weight"
    assert torch.equal(weights(stored)[embeddings], weights(base)[embeddings])
    assert "quantization_config" not in stored.config.to_dict()


@pytest.mark.parametrize("kind", ["qlora", "p_tuning", "bottleneck", "ia3"])
def test_a_base_in_bf16_is_trained_on_and_stored_as_large_as_it_was(
    kind: str, tiny_policy: Path, tmp_path: Path, make_run: MakeRun
) -> None:
    base = in_bf16(tiny_policy, tmp_path / "bf16")
    for method in ("dpo", "reward_model"):
        settings = SHORT | {"bf16": True}
        run_dir = make_run(method, model=base, pairs=12, tuning={"kind": kind}, training=settings)
        train(run_dir)
        assert stored_dtypes(run_dir.model) == {torch.bfloat16}


def test_a_head_that_shared_its_matrix_gets_one_of_its_own(tiny_policy: Path, make_run: MakeRun) -> None:
    run_dir = make_run("dpo", pairs=12, tuning={"kind": "head"}, training=SHORT)
    train(run_dir)
    stored, base = loading.load_policy(str(run_dir.model)), loading.load_policy(str(tiny_policy))
    embeddings = weights(base)["model.embed_tokens.weight"]
    assert torch.equal(weights(stored)["model.embed_tokens.weight"], embeddings)
    assert not torch.equal(weights(stored)["lm_head.weight"], embeddings)
    assert not stored.config.tie_word_embeddings


def test_no_more_layers_are_frozen_than_leave_one_to_train(make_run: MakeRun) -> None:
    trainer = trainer_of(make_run("dpo", pairs=4, tuning={"kind": "freeze"}, training=SHORT))
    frozen = {name for name, one in trainer.model.named_parameters() if not one.requires_grad}
    assert {name.split(".")[2] for name in frozen if ".layers." in name} == {"0"}
    assert "model.embed_tokens.weight" in frozen
    with pytest.raises(Refused, match="2 layers, and the first 2") as refused:
        trainer_of(make_run("dpo", tuning={"kind": "freeze", "frozen_layers": 2}))
    assert "at most 1" in refused.value.do


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in PREFIXES])
def test_gradient_checkpointing_changes_nothing_but_memory(kind: str, make_run: MakeRun) -> None:
    ways = []
    for checkpointing in (False, True):
        settings = SHORT | {"gradient_checkpointing": checkpointing}
        trainer = trainer_of(make_run("dpo", pairs=12, tuning={"kind": kind}, training=settings))
        trainer.train()
        ways.append(losses(trainer))
    assert ways[0] == pytest.approx(ways[1], abs=1e-5)
    assert ways[0][-1] != ways[0][0]


def test_the_paged_optimiser_is_for_qlora_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def optimiser(tuned: Tuning) -> str:
        return str(fitting.settings(Training(), seed=0, output_dir=tmp_path, tuning=tuned)["optim"])

    assert optimiser(Tuning(kind="qlora")) == "adamw_torch"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert optimiser(Tuning(kind="qlora")) == "paged_adamw_8bit"
    assert optimiser(Tuning(kind="qlora", paged_optimiser=False)) == "adamw_torch"
    assert optimiser(Tuning(kind="lora")) == "adamw_torch"
