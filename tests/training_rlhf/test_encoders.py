"""Reward models on encoders: read at the first token, trained and loaded like any other."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402
import transformers  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors  # noqa: E402

from tests.training_rlhf.conftest import pair_row, write_run  # noqa: E402
from training.rlhf import loading, preflight, recipe, rendering, scoring  # noqa: E402
from training.rlhf.config import RunConfig  # noqa: E402
from training.rlhf.failures import Refused  # noqa: E402
from training.rlhf.model_files import is_encoder, positions  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, RunDir  # noqa: E402

SIZE: dict[str, Any] = {
    "vocab_size": 266,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 130,
}


def save_encoder(folder: Path, kind: str) -> Path:
    """As most are published: a masked language model; a tokenizer with [CLS] and [SEP] and no template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    bytes_ = Tokenizer(
        models.BPE(vocab={token: n for n, token in enumerate([*special, *letters])}, merges=[])
    )
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    bytes_.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bytes_, unk_token="[UNK]", **names
    ).save_pretrained(folder)
    torch.manual_seed(0)
    if kind == "bert":
        transformers.BertForMaskedLM(transformers.BertConfig(**SIZE)).save_pretrained(folder)
    else:
        config = transformers.RobertaConfig(**SIZE, pad_token_id=0)
        transformers.RobertaForMaskedLM(config).save_pretrained(folder)
    return folder


def right(folder: Path) -> float:
    model, tokenizer = loading.load_reward_model(folder)
    rows = [pair_row(number) for number in range(500, 540)]
    chosen, rejected = (
        scoring.reward_scores(model, tokenizer, [[*row["prompt"], *row[side]] for row in rows])
        for side in ("chosen", "rejected")
    )
    return sum(one > other for one, other in zip(chosen, rejected, strict=True)) / len(rows)


@pytest.mark.parametrize(("kind", "tuning"), [("bert", "full"), ("bert", "lora"), ("roberta", "full")])
def test_an_encoder_learns_which_of_two_is_better(kind: str, tuning: str, tmp_path: Path) -> None:
    encoder = save_encoder(tmp_path / "encoder", kind)
    training = {"epochs": 8.0, "learning_rate": 1e-2 if tuning == "lora" else 3e-3}
    run_dir = write_run(
        tmp_path / "run", model=encoder, method="reward_model", ratings=20,
        tuning={"kind": tuning, "lora_rank": 4}, training=training,
    )  # fmt: skip
    config = RunConfig.load(run_dir.config)
    report = preflight.check(run_dir, config)
    assert report["ok"], report["errors"]
    recipe.train(run_dir, config, ProgressWriter(run_dir))
    assert right(run_dir.model) > 0.9


def test_it_is_read_at_its_first_token_whatever_the_padding_and_however_long_the_text(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path, "bert")
    tokenizer = loading.load_tokenizer(str(folder))
    model = loading.load_reward_base(str(folder), seed=0)
    loading.fit(model, tokenizer, where="")
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    long = [{"role": "user", "content": "word " * 60}, *talk[1:]]
    ids = rendering.conversation_ids(tokenizer, talk)
    assert (ids[0], ids[-1], ids.count(1), ids.count(2)) == (1, 2, 1, 1)  # [CLS] ... [SEP]
    assert rendering.template_problems(tokenizer) == []
    alone = scoring.reward_scores(model, tokenizer, [talk])[0]
    together = scoring.reward_scores(model, tokenizer, [talk, long])
    assert together[0] == pytest.approx(alone, abs=1e-5)
    whole = rendering.conversation_ids(tokenizer, long)
    cut = torch.tensor([[whole[0], *whole[-129:]]])
    with torch.no_grad():
        assert together[1] == pytest.approx(float(model(cut).logits[0, 0]), abs=1e-5)


def test_roberta_has_fewer_positions_than_its_config_says(tmp_path: Path) -> None:
    model = loading.load_reward_base(str(save_encoder(tmp_path, "roberta")), seed=0)
    assert positions(model.config) == 129
    with torch.no_grad():
        model(torch.full((1, 129), 7))  # the last that fits
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, 130), 7))


def test_the_weights_of_an_encoder_are_checked_and_a_policy_is_none(
    tiny_policy: Path, tmp_path: Path
) -> None:
    folder = str(save_encoder(tmp_path, "bert"))
    loading.check_weights(folder, purpose="reward_base")
    for purpose in ("policy", "reward_model"):
        with pytest.raises(loading.ModelRefused):
            loading.check_weights(folder, purpose=purpose)
    assert is_encoder(transformers.AutoConfig.from_pretrained(folder))
    assert not is_encoder(transformers.AutoConfig.from_pretrained(tiny_policy))


def test_tuning_that_was_made_for_policies_is_refused_for_an_encoder(tmp_path: Path) -> None:
    encoder = save_encoder(tmp_path / "encoder", "bert")
    run_dir: RunDir = write_run(
        tmp_path / "run", model=encoder, method="reward_model", tuning={"kind": "prefix"}
    )
    with pytest.raises(Refused, match="full, lora, dora"):
        recipe.train(run_dir, RunConfig.load(run_dir.config), ProgressWriter(run_dir))
