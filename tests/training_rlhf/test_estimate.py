"""What a run will cost, guessed before it starts."""

import time
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402

from tests.training_rlhf.conftest import MakeRun, write_rows  # noqa: E402
from training.rlhf import preflight  # noqa: E402
from training.rlhf.checks import estimate  # noqa: E402
from training.rlhf.config import RunConfig, Training, Tuning  # noqa: E402
from training.rlhf.model_files import causal_config  # noqa: E402
from training.rlhf.run_dir import RunDir  # noqa: E402
from training.rlhf.tuning_kinds import trained_share  # noqa: E402


@pytest.fixture(autouse=True)
def slow_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose speed is known: what the operations cost then outweighs the start."""
    monkeypatch.setattr(estimate, "_measured_rate", lambda bf16: 1e8)


def guess(run_dir: RunDir) -> dict[str, Any]:
    report = preflight.check(run_dir, RunConfig.load(run_dir.config))
    assert report["ok"], report["errors"]
    return report["estimate"]


def with_prompts(run_dir: RunDir, count: int) -> RunDir:
    rows = [{"prompt": [{"role": "user", "content": f"Say {number:03}."}]} for number in range(count)]
    write_rows(run_dir.data / "prompts.test.jsonl", rows)
    return run_dir


def test_adapters_and_accumulation_enter_the_estimate(make_run: MakeRun) -> None:
    full = guess(make_run("dpo"))
    adapted = guess(
        make_run("dpo", tuning={"kind": "lora", "lora_rank": 2}, training={"gradient_accumulation": 5})
    )
    assert full["trained_parameters"] == full["parameters"]
    # Rank 2 on q, k, v, o (32 x 32) and gate, up, down (32 x 64) of two layers.
    assert adapted["trained_parameters"] == 2 * 2 * (4 * 64 + 3 * 96)
    assert full["steps"] == 10
    assert adapted["steps"] == 2


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_adapters_are_counted_as_peft_makes_them(kind: str) -> None:
    size = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model_config = transformers.AutoConfig.for_model(kind, **size)
    model: Any = transformers.AutoModelForCausalLM.from_config(model_config)  # type: ignore[no-untyped-call]
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    config = RunConfig(method="dpo", model="x", tuning=Tuning(kind="lora", lora_rank=4))
    assert trained_share.count(config, model_config).trained == adapted.get_nb_trainable_parameters()[0] > 0


def test_weights_of_every_kind_by_hand(make_run: MakeRun) -> None:
    """Two layers, 32 wide: 2 x (4 x 32 x 32 + 3 x 32 x 64) in linear layers, of 29,024 weights."""

    def found(kind: str, **settings: Any) -> trained_share.Weights:
        tuning = {"kind": kind, "virtual_tokens": 5, "lora_rank": 2, "bottleneck_size": 3} | settings
        config = RunConfig.load(make_run("dpo", tuning=tuning).config)
        return trained_share.count(config, causal_config(config.model))

    embeddings, linear, norms = 262 * 32, 2 * (4 * 32 * 32 + 3 * 32 * 64), 5 * 32
    assert found("full") == (29_024, embeddings + linear + norms, 0, 0)
    assert found("head") == (29_024, embeddings, embeddings, 0)  # a matrix of its own
    assert found("freeze").trained == linear / 2 + 3 * 32
    low_rank = 2 * 2 * (4 * (32 + 32) + 3 * (32 + 64))
    assert found("lora").trained == low_rank
    assert found("lora", lora_targets="attention").trained == 2 * 2 * 4 * (32 + 32)
    assert found("dora").trained == low_rank + 2 * (5 * 32 + 2 * 64)  # a length for each output
    assert found("qlora") == (29_024, low_rank, low_rank, linear)
    assert found("ia3").trained == 2 * (32 + 32 + 64)
    assert found("bottleneck").trained == 2 * 2 * (2 * 3 * 32 + 3 + 32)
    assert found("prompt").trained == 5 * 32
    assert found("p_tuning_v2").trained == 5 * 2 * 2 * 32
    assert found("p_tuning").trained == 5 * 32 + 3 * (32 * 32 + 32)
    assert found("prefix").trained == 5 * 32 + (32 * 32 + 32) + (32 + 1) * 2 * 2 * 32


def test_what_is_trained_is_most_of_the_memory(make_run: MakeRun) -> None:
    """Bytes for a weight: 16 where it is trained, 4 where it is frozen, about half a byte in NF4."""
    model_config = transformers.LlamaConfig(num_hidden_layers=2)
    weights = trained_share.Weights(whole=1000, trained=1000, added=0, quantised=0)

    def memory(kind: Any, weights: trained_share.Weights, *, bf16: bool = False) -> float:
        config = RunConfig(method="dpo", model="x", tuning=Tuning(kind=kind), training=Training(bf16=bf16))
        return estimate._weights(config, model_config, weights)

    assert memory("full", weights) == 16_000
    assert memory("head", weights._replace(trained=100)) == 4_000 + 1_200
    assert memory("lora", weights._replace(trained=10, added=10)) == 4_000 + 160
    quantised = weights._replace(trained=10, added=10, quantised=900)
    assert memory("qlora", quantised, bf16=True) == pytest.approx(100 * 2 + 900 * 0.52 + 160)


def test_the_evaluation_is_in_the_time_and_grows_with_what_it_writes(make_run: MakeRun) -> None:
    few = guess(with_prompts(make_run("dpo", sampling={"max_new_tokens": 50}), 10))
    many = guess(with_prompts(make_run("dpo", sampling={"max_new_tokens": 50}), 100))
    most = guess(with_prompts(make_run("dpo", sampling={"max_new_tokens": 50}), 256))
    more = guess(with_prompts(make_run("dpo", sampling={"max_new_tokens": 50}), 300))
    longer = guess(with_prompts(make_run("dpo", sampling={"max_new_tokens": 200}), 100))
    assert many["evaluation_seconds"] == pytest.approx(10 * few["evaluation_seconds"], rel=0.1)
    assert more["evaluation_seconds"] == pytest.approx(most["evaluation_seconds"], rel=0.01)  # 256 are used
    assert longer["evaluation_seconds"] > 2.5 * many["evaluation_seconds"]
    for one in (few, many, longer):
        rest = one["seconds"] - one["evaluation_seconds"]
        assert rest == pytest.approx(few["seconds"] - few["evaluation_seconds"], abs=0.2)


def test_writing_by_hand(make_run: MakeRun) -> None:
    """29,024 parameters, 100 prompts of 12 tokens and 50 more: written twice and read twice."""
    found = guess(with_prompts(make_run("dpo", sampling={"max_new_tokens": 50, "batch_size": 100}), 100))
    operations = 2 * 29_024 * 100 * (12 + 50) * 4
    steps = 2 * 50 * 2  # two policies, 50 tokens, two layers
    expected = operations / (1e8 * estimate.USE_OF_PEAK) + steps * estimate.SECONDS_OF_A_LAYER
    assert found["evaluation_seconds"] == pytest.approx(expected, rel=0.02)


def test_a_reward_model_that_scores_both_texts_costs_time_too() -> None:
    without = RunConfig(method="dpo", model="x")
    named = RunConfig(method="dpo", model="x", reward_model="y")
    prompts: Any = type("Prompts", (), {"prompts": [0] * 10, "tokens": 100})
    config = transformers.LlamaConfig(num_hidden_layers=2)
    seconds = [
        estimate._seconds_of_writing(one, config, prompts, parameters=10**6, rate=1e8)
        for one in (without, named)
    ]
    assert seconds[1] > 1.3 * seconds[0]


def test_memory_holds_the_cache_of_a_batch_that_is_written(make_run: MakeRun) -> None:
    """Small steps of training, large batches of texts: the larger of both is what must fit."""
    small = {"training": {"batch_size": 1}, "tuning": {"kind": "lora", "lora_rank": 1}}
    few, many = (
        guess(with_prompts(make_run("dpo", sampling={"max_new_tokens": 200, "batch_size": n}, **small), 256))
        for n in (1, 256)
    )
    cache = 2 * 2 * 32 * 4  # keys and values of two layers, 32 wide, fp32: bytes of a token
    assert many["memory_bytes"] - few["memory_bytes"] > 200 * 200 * cache


def test_what_an_evaluation_holds_is_at_least_what_it_allocates() -> None:
    """Against the tensors themselves: the cache that transformers makes for such a batch."""
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model: Any = transformers.LlamaForCausalLM(config)
    cache = model(torch.zeros(5, 40, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    weights = sum(weight.nbytes for weight in model.parameters())
    prompts: Any = type("Prompts", (), {"prompts": [0] * 5, "longest": 30, "limit": 100})
    recipe = RunConfig.from_json({"method": "dpo", "model": "x", "sampling": {"max_new_tokens": 10}})
    found = estimate._memory_of_writing(recipe, config, prompts, parameters=weights // 4)
    assert held + weights <= found <= 1.2 * (held + weights)


def test_the_speed_of_a_machine_that_others_use_is_that_of_its_best_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Products of 10, 1 and 89 ms: 2 * 512**3 operations in a thousandth of a second."""
    monkeypatch.undo()
    moments = iter([0.0, 0.0, 0.010, 0.010, 0.011, 0.011, 0.100, 0.200])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    assert estimate._measured_rate(bf16=False) == pytest.approx(2 * 512**3 / 0.001)
