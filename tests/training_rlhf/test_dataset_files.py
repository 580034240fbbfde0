"""Each file of a frozen dataset is read by `datasets` and goes unchanged into a bare TRL trainer."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

import torch
from django.contrib.auth.models import User

from labeling.datasets import folder_of, freeze
from labeling.models import PreferenceDataset, Project
from tests import factories
from tests.labeling import judged

pytestmark = [pytest.mark.training, pytest.mark.django_db]

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <eos>{% endfor %}"


@pytest.fixture
def dataset(project: Project, ann: User, bo: User) -> PreferenceDataset:
    """Comparisons, rankings and ratings, on both sides of the split."""
    votes: list[list[int | None]] = [[4, 2], [-1, -3], [0, 0], [None, None], [3, -3], [2, 1], [1, 4]]
    compared = judged.compared_round(project, [ann, bo], votes, test_tasks=2)
    ranked, rated = judged.make_round(project, "ranking"), judged.make_round(project, "rating")
    policy = factories.make_policy(project, "other")
    for number, split in enumerate(["train", "train", "test"]):
        prompt = judged.make_prompt(project, f"Rank {number}.", split)
        task = judged.make_task(ranked, prompt, ["a hen", "a fox", "a cat"], [policy] * 3, split)
        first, second, third = (str(item.completion_id) for item in task.items.all())
        judged.say(task, ann, {"ranks": {first: 1, second: 2, third: 2}})
        task = judged.make_task(rated, prompt, ["a dog"], [policy], split)
        judged.say(task, bo, {"scores": {"overall": number + 1}})
    return freeze(project=project, rounds=[compared, ranked, rated], rule="each_label", name="all")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a word tokenizer and a chat template: no network, no checkpoint."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [
        "<unk>",
        "<pad>",
        "<eos>",
        "<user>",
        "<assistant>",
        "A",
        "a",
        "fox",
        "hen",
        "cat",
        "Rank",
        "Tell",
    ]
    word_level = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=word_level, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
            pad_token_id=1, eos_token_id=2, bos_token_id=None,
        )
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def loaded(folder: Path, table: str, form: str, cache: Path) -> Any:
    """A table as DatasetDict, as a newcomer would load it."""
    import datasets

    if form == "hub":
        return datasets.load_from_disk(str(folder / "hub" / table))
    files = {split: str(folder / table / f"{split}.{form}") for split in ("train", "test")}
    kind = {"jsonl": "json", "parquet": "parquet"}[form]
    return datasets.load_dataset(kind, data_files=files, cache_dir=str(cache))


@pytest.mark.parametrize("table", ["pairs", "rankings", "ratings", "prompts"])
def test_every_form_of_a_table_loads_to_the_same_rows_and_types(
    dataset: PreferenceDataset, table: str, tmp_path: Path
) -> None:
    folder = folder_of(dataset)
    forms = {form: loaded(folder, table, form, tmp_path / form) for form in ("jsonl", "parquet", "hub")}
    for split in ("train", "test"):
        first = forms["jsonl"][split]
        assert len(first) == dataset.manifest["tables"][table][split] > 0
        for other in (forms["parquet"][split], forms["hub"][split]):
            assert other.to_list() == first.to_list()
            assert other.features == first.features


def test_two_datasets_do_not_share_a_cache_in_datasets(dataset: PreferenceDataset, ann: User) -> None:
    import datasets

    other = freeze(project=dataset.project, rounds=list(dataset.rounds.all()), rule="majority", name="other")
    prints = {
        datasets.load_from_disk(str(folder_of(one) / "hub" / "pairs"))["train"]._fingerprint
        for one in (dataset, other)
    }
    assert len(prints) == 2


def settings_of(tmp_path: Path) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path / "out"), "report_to": "none", "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "max_steps": 2, "per_device_train_batch_size": 2, "seed": 0,
        "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "max_length": 64,
        "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 1e-3,
    }  # fmt: skip


def _rows(trainer: Any) -> Any:
    return trainer.train_dataset


@pytest.mark.parametrize("form", ["jsonl", "parquet", "hub"])
def test_pairs_train_a_bare_reward_trainer(
    dataset: PreferenceDataset, form: str, model_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    pairs = loaded(folder_of(dataset), "pairs", form, tmp_path / "cache")
    model = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1)
    before = model.score.weight.detach().clone()
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**settings_of(tmp_path)),
        train_dataset=pairs["train"],
        eval_dataset=pairs["test"],
        processing_class=AutoTokenizer.from_pretrained(model_folder),
    )
    assert len(_rows(trainer)) == len(pairs["train"])  # none was too long, none refused
    trainer.train()
    assert not torch.equal(before, model.score.weight)


@pytest.mark.parametrize("form", ["jsonl", "parquet", "hub"])
def test_pairs_train_a_bare_dpo_trainer(
    dataset: PreferenceDataset, form: str, model_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    pairs = loaded(folder_of(dataset), "pairs", form, tmp_path / "cache")
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    before = model.lm_head.weight.detach().clone()
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(**settings_of(tmp_path)),
        train_dataset=pairs["train"],
        eval_dataset=pairs["test"],
        processing_class=AutoTokenizer.from_pretrained(model_folder),
    )
    assert len(_rows(trainer)) == len(pairs["train"])  # none was too long, none refused
    trainer.train()
    assert not torch.equal(before, model.lm_head.weight)


@pytest.mark.parametrize("form", ["jsonl", "parquet", "hub"])
def test_prompts_train_a_bare_rloo_trainer(
    dataset: PreferenceDataset, form: str, model_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer

    prompts = loaded(folder_of(dataset), "prompts", form, tmp_path / "cache")
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    before = model.lm_head.weight.detach().clone()

    def length(completions: list[Any], **_: Any) -> list[float | None]:
        return [float(len(str(completion))) for completion in completions]

    settings = settings_of(tmp_path)
    del settings["max_length"]
    trainer = RLOOTrainer(
        model=model,
        reward_funcs=length,
        args=RLOOConfig(
            **{**settings, "eval_strategy": "no", "num_generations": 2, "max_completion_length": 8}
        ),
        train_dataset=prompts["train"],
        processing_class=AutoTokenizer.from_pretrained(model_folder),
    )
    assert len(_rows(trainer)) == len(prompts["train"])
    trainer.train()
    assert not torch.equal(before, model.lm_head.weight)
