"""What is loaded is safe and whole; what is not is refused in words."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("torch")

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

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


def save_gpt2(folder: Path) -> None:
    """As GPT-2 is published: no padding token, one special token for everything, no row to spare."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE(vocab={t: n for n, t in enumerate(["<|end|>", *letters])}, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bytes_alone, eos_token="<|end|>", bos_token="<|end|>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=257, n_embd=32, n_layer=2, n_head=2, n_positions=256, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


def test_where_padding_is_eos_a_new_reward_model_still_reads_eos(tmp_path: Path) -> None:
    """The state at EOS, one text at a time, is what is scored; after saving also by plain transformers."""
    save_gpt2(tmp_path / "policy")
    tokenizer = loading.load_tokenizer(str(tmp_path / "policy"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    model: Any = loading.load_reward_base(str(tmp_path / "policy"), seed=0)
    loading.fit(model, tokenizer, where="")
    talks = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * n}] for n in (1, 9)]
    expected = []
    for talk in talks:
        ids = rendering.conversation_ids(tokenizer, talk)
        assert ids[-1] == tokenizer.eos_token_id
        expected.append(
            model.score(model.transformer(torch.tensor([ids])).last_hidden_state)[0, -1, 0].item()
        )
    assert scoring.reward_scores(model, tokenizer, talks) == pytest.approx(expected, abs=1e-5)

    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    scoring.write_canaries(model, tokenizer, folder=tmp_path / "reward")
    again, its_tokenizer = loading.load_reward_model(tmp_path / "reward")
    assert scoring.reward_scores(again, its_tokenizer, talks) == pytest.approx(expected, abs=1e-5)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    batch = transformers.AutoTokenizer.from_pretrained(tmp_path / "reward")(
        [rendering.render_conversation(tokenizer, talk) for talk in talks], return_tensors="pt", padding=True
    )
    assert plain(**batch).logits[:, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_reward_model_from_before_is_read_where_it_was_trained(tmp_path: Path) -> None:
    """One that padded with EOS, and so never read it, keeps its scores."""
    save_gpt2(tmp_path)
    tokenizer = loading.load_tokenizer(str(tmp_path))
    model = loading.load_reward_base(str(tmp_path), seed=0)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scoring.write_canaries(model, tokenizer, folder=tmp_path)
    loading.load_reward_model(tmp_path)  # refused if a canary's score moved


def save_encoder(folder: Path, tiny_policy: Path, kind: str) -> None:
    shutil.copytree(tiny_policy, folder)
    small: dict[str, Any] = {
        "vocab_size": 262,
        "num_attention_heads": 2,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    size: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    if kind == "t5":
        other: dict[str, Any] = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "d_kv": 16}
        t5 = transformers.T5Config(**(small | other | {"decoder_start_token_id": 0}))
        transformers.T5ForConditionalGeneration(t5).save_pretrained(folder)
    else:
        bert = transformers.BertConfig(**(small | size), is_decoder=kind == "bert as decoder")
        transformers.BertLMHeadModel(bert).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_an_encoder_is_no_policy_and_one_with_a_decoder_no_reward_model_either(
    kind: str, tiny_policy: Path, tmp_path: Path
) -> None:
    save_encoder(tmp_path / kind, tiny_policy, kind)
    loads: list[Any] = [loading.load_policy, lambda folder: loading.load_reward_base(folder, seed=0)]
    for load in loads[: 1 if kind == "bert" else 2]:
        with pytest.raises(ModelRefused, match=f"encoder.*{kind}") as refused:
            load(str(tmp_path / kind))
        assert "causal" in refused.value.do


def test_a_bert_that_was_made_a_decoder_may_write(tiny_policy: Path, tmp_path: Path) -> None:
    save_encoder(tmp_path / "decoder", tiny_policy, "bert as decoder")
    assert loading.load_policy(str(tmp_path / "decoder")).can_generate()


def torn(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def without_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_another_shape(folder: Path) -> None:
    change(folder / "config.json", intermediate_size=48)


@pytest.mark.parametrize("damage", [torn, without_a_tensor, with_another_shape])
@pytest.mark.parametrize("purpose", ["policy", "reward_base", "reward_model"])
def test_damage_is_seen_in_the_headers_alone(folder: Path, damage: Any, purpose: Any) -> None:
    if purpose == "reward_model":
        loading.load_reward_base(str(folder), seed=0).save_pretrained(folder)
    loading.check_weights(str(folder), purpose=purpose)
    damage(folder)
    with pytest.raises(ModelRefused):
        loading.check_weights(str(folder), purpose=purpose)


def test_a_policy_is_no_reward_model_by_its_headers_either(folder: Path) -> None:
    with pytest.raises(ModelRefused, match="score"):
        loading.check_weights(str(folder), purpose="reward_model")


def test_on_a_cpu_a_policy_is_served_in_fp32_and_on_a_gpu_as_it_is_stored(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading.load_policy(str(folder), dtype=torch.bfloat16).save_pretrained(folder)
    for on_gpu, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda on_gpu=on_gpu: on_gpu)
        assert loading.serving_dtype(str(folder)) == dtype
