"""Models with adapters beside their weights write, score and are refused as a start; damage is seen."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel  # noqa: E402

from tests.training_rlhf.conftest import MakeRun, write_run  # noqa: E402
from training.rlhf import loading, preflight, recipe, rendering, sampling, scoring  # noqa: E402
from training.rlhf.config import RunConfig, Sampling  # noqa: E402
from training.rlhf.model_files import ModelRefused, positions  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, RunDir  # noqa: E402
from training.rlhf.tuning_kinds import virtual_tokens  # noqa: E402
from training.rlhf.tuning_settings import BESIDE_THE_WEIGHTS, PROMPTS, VIRTUAL_TOKENS  # noqa: E402

SHORT = {"max_steps": 2, "learning_rate": 1e-2, "warmup_ratio": 0.0}
TALKS = [
    [{"role": "user", "content": "x" * length}, {"role": "assistant", "content": "y"}]
    for length in (9, 1, 40)
]
GREEDY = Sampling(temperature=0, max_new_tokens=40, batch_size=8)
Trained = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def trained(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The folder of a model that was trained by a method with a kind of tuning; each is trained once."""
    folder = tmp_path_factory.mktemp("trained")

    def model(method: str, kind: str) -> Path:
        path = folder / f"{method}-{kind}"
        if not path.exists():
            tuning = {"kind": kind, "virtual_tokens": 5}
            run_dir = write_run(
                path, model=tiny_policy, method=method, pairs=8, tuning=tuning, training=SHORT
            )
            train(run_dir)
        return path / "model"

    return model


def train(run_dir: RunDir) -> None:
    recipe.train(run_dir, RunConfig.load(run_dir.config), ProgressWriter(run_dir))


@torch.inference_mode()
def written_token_by_token(model: Any, prompt: list[int], tokens: int) -> list[int]:
    """The likeliest next token, over and over, without a cache, a batch or padding."""
    row = list(prompt)
    for _ in range(tokens):
        ids = torch.tensor([row])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        row.append(int(logits[0, -1].argmax()))
        if row[-1] == 2:  # the end
            break
    return row[len(prompt) :]


@pytest.mark.parametrize("kind", BESIDE_THE_WEIGHTS)
def test_a_policy_writes_in_a_padded_batch_what_it_writes_alone(kind: str, trained: Trained) -> None:
    folder = str(trained("dpo", kind))
    model, tokenizer = loading.load_policy(folder), loading.load_tokenizer(folder)
    prompts = [talk[:1] for talk in TALKS]
    drawn = sampling.generate(model, tokenizer, prompts, sampling=GREEDY, seed=0)
    for one in drawn:
        assert list(one.ids) == written_token_by_token(model, list(one.prompt_ids), len(one.ids))
    bare: Any = AutoModelForCausalLM.from_pretrained(folder)  # the base, as anybody would load it
    assert loading.load_policy(folder).dtype == bare.dtype


def test_virtual_tokens_take_room_before_a_long_prompt(trained: Trained) -> None:
    folder = str(trained("dpo", "prompt"))
    model, tokenizer = loading.load_policy(folder), loading.load_tokenizer(folder)
    assert virtual_tokens.count(model) == 5
    long = [[{"role": "user", "content": "x" * 400}]]
    (one,) = sampling.generate(model, tokenizer, long, sampling=GREEDY, seed=0)
    assert len(one.prompt_ids) == positions(model.config) - 5 - 40
    assert (
        len(scoring.reward_scores(*loading.load_reward_model(trained("reward_model", "prompt")), long)) == 1
    )


@pytest.mark.parametrize("kind", BESIDE_THE_WEIGHTS)
def test_a_score_is_read_at_the_last_token_whatever_pads_the_batch(kind: str, trained: Trained) -> None:
    model, tokenizer = loading.load_reward_model(trained("reward_model", kind))
    alone = [scoring.reward_scores(model, tokenizer, [talk])[0] for talk in TALKS]
    assert len({round(score, 4) for score in alone}) == 3
    assert scoring.reward_scores(model, tokenizer, TALKS) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("kind", PROMPTS)
def test_a_score_is_the_heads_of_the_state_at_the_end(kind: str, trained: Trained) -> None:
    model, tokenizer = loading.load_reward_model(trained("reward_model", kind))
    whole: Any = model
    ids = torch.tensor([rendering.conversation_ids(tokenizer, TALKS[0])])
    base = whole.get_base_model()
    text = torch.cat([whole.get_prompt(1), base.model.embed_tokens(ids)], dim=1)
    states = base.model(inputs_embeds=text, attention_mask=torch.ones(text.shape[:2])).last_hidden_state
    expected = base.score(states)[0, -1, 0].item()
    assert scoring.reward_scores(model, tokenizer, TALKS)[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", VIRTUAL_TOKENS)
def test_a_model_that_counts_its_positions_writes_the_same_too(
    kind: str, tiny_policy: Path, tmp_path: Path, make_run: MakeRun
) -> None:
    """GPT-2 adds a vector for each place: a place that counts padding would be another text."""
    folder = shutil.copytree(tiny_policy, tmp_path / "gpt2")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 262, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).save_pretrained(folder)
    run_dir = make_run("dpo", model=folder, pairs=8, tuning={"kind": kind}, training=SHORT)
    train(run_dir)
    model, tokenizer = loading.load_policy(str(run_dir.model)), loading.load_tokenizer(str(folder))
    prompts = [talk[:1] for talk in TALKS]
    short = Sampling(temperature=0, max_new_tokens=6)
    drawn = sampling.generate(model, tokenizer, prompts, sampling=short, seed=0)
    for one in drawn:
        assert list(one.ids) == written_token_by_token(model, list(one.prompt_ids), len(one.ids))


@pytest.mark.parametrize("method", ["dpo", "reward_model"])
def test_no_training_begins_from_a_model_with_adapters_beside_it(
    method: str, trained: Trained, make_run: MakeRun
) -> None:
    run_dir = make_run(method, model=trained("dpo", "prompt"), training=SHORT)
    report = preflight.check(run_dir, RunConfig.load(run_dir.config))
    assert not report["ok"]
    assert "Prompt tuning" in report["errors"][0]["what"]
    assert "Begin from the model that it was trained from" in report["errors"][0]["do"]
    with pytest.raises(ModelRefused, match="cannot be merged"):
        train(run_dir)


def test_a_reward_model_with_adapters_judges_a_policy(trained: Trained, make_run: MakeRun) -> None:
    run_dir = make_run(
        "dpo", reward_model=str(trained("reward_model", "p_tuning_v2")), tuning={"kind": "bottleneck"},
        pairs=8, training=SHORT,
    )  # fmt: skip
    config = RunConfig.load(run_dir.config)
    assert preflight.check(run_dir, config)["ok"]
    train(run_dir)
    found = recipe.evaluate(run_dir, config, ProgressWriter(run_dir))
    assert found["win_rate_reward_model"] is not None


def without_weights(folder: Path) -> None:
    (folder / "adapter" / "adapter_model.safetensors").unlink()


def pickled(folder: Path) -> None:
    weights = folder / "adapter" / "adapter_model.safetensors"
    weights.rename(weights.with_name("adapter_model.bin"))


def of_a_later_version(folder: Path) -> None:
    (folder / "adapter.json").write_text(json.dumps({"format": 9, "kind": "prompt"}))


def torn(folder: Path) -> None:
    (folder / "adapter.json").write_text('{"format": 1')


@pytest.mark.parametrize("damage", [without_weights, pickled, of_a_later_version, torn])
def test_adapters_that_are_not_whole_are_refused(damage: Any, trained: Trained, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained("dpo", "prompt"), tmp_path / "model"))
    damage(folder)
    with pytest.raises(ModelRefused):
        loading.load_policy(str(folder))
    with pytest.raises(ModelRefused):
        loading.check_weights(str(folder), purpose="policy")
