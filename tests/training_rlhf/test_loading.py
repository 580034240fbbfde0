"""What is loaded is safe and whole; what is not is refused in words."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file, save_file

from training.rlhf import loading, rendering, scoring
from training.rlhf.loading import ModelRefused

pytestmark = pytest.mark.training


@pytest.fixture
def folder(tiny_policy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_policy, tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf-8")


def test_a_folder_loads_in_fp32_for_evaluation(folder: Path) -> None:
    model = loading.load_policy(str(folder))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "w.pkl", "x.ckpt"]
)
@pytest.mark.parametrize("beside", [True, False], ids=["beside safetensors", "alone"])
def test_pickled_weights_are_refused_and_never_opened(folder: Path, name: str, beside: bool) -> None:
    (folder / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    if not beside:
        (folder / "model.safetensors").unlink()
    with pytest.raises(ModelRefused, match="pickled") as refused:
        loading.load_policy(str(folder))
    assert refused.value.where == str(folder) and name in refused.value.what and refused.value.do
    with pytest.raises(ModelRefused, match="pickled"):
        loading.load_tokenizer(str(folder))


def test_what_a_trainer_leaves_beside_a_model_is_no_reason_to_refuse(folder: Path) -> None:
    (folder / "training_args.bin").write_bytes(b"whatever")
    (folder / "optimizer.pt").write_bytes(b"whatever")
    loading.load_policy(str(folder))


def test_a_model_that_brings_code_is_refused(folder: Path) -> None:
    change(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    for load in (loading.load_policy, loading.load_tokenizer, loading.load_reward_model):
        with pytest.raises(ModelRefused, match="own code"):
            load(str(folder))
    assert not (folder / "ran").exists()


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"no config\.json"):
        loading.load_policy(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelRefused, match="no weights in safetensors"):
        loading.load_policy(str(tmp_path))
    with pytest.raises(ModelRefused, match="a file"):
        loading.load_policy(str(tmp_path / "config.json"))
    with pytest.raises(ModelRefused, match="no such folder"):
        loading.load_policy(str(tmp_path / "missing"))


def test_an_adapter_without_its_base_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelRefused, match="adapter"):
        loading.load_policy(str(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", '"text"', '{"model_type": "no-such-model"}', "{}"])
def test_a_broken_config_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelRefused):
        loading.load_policy(str(folder))


def test_torn_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelRefused):
        loading.load_policy(str(folder))


def test_a_model_that_lacks_a_tensor_is_refused_instead_of_filled_with_random_numbers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelRefused, match=r"lack 1 .*layers\.1\.mlp\.up_proj"):
        loading.load_policy(str(folder))


def test_a_reward_model_is_no_policy_and_a_policy_no_reward_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"lack 1 .*score"):
        loading.load_reward_model(folder)
    loading.load_reward_base(str(folder), seed=0).save_pretrained(tmp_path / "reward")
    with pytest.raises(ModelRefused, match="reward model"):
        loading.load_policy(str(tmp_path / "reward"))


def test_the_head_of_a_new_reward_model_is_drawn_by_the_seed(folder: Path) -> None:
    models = [loading.load_reward_base(str(folder), seed=seed) for seed in (1, 1, 2)]
    heads = [model.state_dict()["score.weight"] for model in models]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_hub_id_that_cannot_be_reached_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelRefused, match="hub") as refused:
        loading.load_policy("nobody-here/no-such-model")
    assert "local folder" in refused.value.do


def test_a_vocabulary_without_embeddings_is_refused(folder: Path) -> None:
    tokenizer = loading.load_tokenizer(str(folder))
    tokenizer.add_tokens(["new1", "new2"])
    with pytest.raises(ModelRefused, match="only 262 embeddings"):
        loading.fit(loading.load_policy(str(folder)), tokenizer, where=str(folder))


def test_a_tokenizer_without_eos_takes_it_from_the_model_or_is_refused(folder: Path) -> None:
    change(folder / "tokenizer_config.json", eos_token=None)
    assert loading.load_tokenizer(str(folder)).eos_token == "<|end|>"
    change(folder / "config.json", eos_token_id=None)
    with pytest.raises(ModelRefused, match="no EOS"):
        loading.load_tokenizer(str(folder))


def test_a_tokenizer_without_padding_gets_a_token_that_is_there(folder: Path) -> None:
    change(folder / "tokenizer_config.json", pad_token=None)
    tokenizer = loading.load_tokenizer(str(folder))
    assert tokenizer.pad_token == "<|pad|>"
    model = loading.load_policy(str(folder))
    loading.fit(model, tokenizer, where=str(folder))
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_a_reward_model_is_loaded_only_when_its_canaries_still_sing(folder: Path, tmp_path: Path) -> None:
    reward = tmp_path / "reward"
    tokenizer = loading.load_tokenizer(str(folder))
    model = loading.load_reward_base(str(folder), seed=0)
    loading.fit(model, tokenizer, where="")
    model.save_pretrained(reward)
    tokenizer.save_pretrained(reward)
    scoring.write_canaries(model, tokenizer, folder=reward)
    loaded, _ = loading.load_reward_model(reward)
    assert not loaded.training

    weights = load_file(reward / "model.safetensors")
    save_file(
        weights | {"score.weight": -weights["score.weight"]}, reward / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ModelRefused, match="when saved and is"):
        loading.load_reward_model(reward)
    save_file(weights, reward / "model.safetensors", {"format": "pt"})

    tokenizer.chat_template += "\n"
    tokenizer.save_pretrained(reward)
    with pytest.raises(ModelRefused, match="template"):
        loading.load_reward_model(reward)


def test_scores_do_not_depend_on_the_batch_or_the_order(folder: Path) -> None:
    tokenizer = loading.load_tokenizer(str(folder))
    model = loading.load_reward_base(str(folder), seed=0)
    loading.fit(model, tokenizer, where="")
    talks = [
        [{"role": "user", "content": "x" * length}, {"role": "assistant", "content": "y"}]
        for length in (9, 1, 40, 3)
    ]
    alone = [scoring.reward_scores(model, tokenizer, [talk])[0] for talk in talks]
    assert scoring.reward_scores(model, tokenizer, talks, batch_size=3) == pytest.approx(alone, abs=1e-5)
    read = torch.tensor([rendering.conversation_ids(tokenizer, talks[0])])
    whole = cast(Any, model)
    states = whole.model(input_ids=read).last_hidden_state
    assert whole.score(states)[0, -1, 0].item() == pytest.approx(alone[0], abs=1e-5)  # at the last token
