"""Several reward models as one reward: an ensemble and its doubt, helpfulness gated by safety."""

import doctest
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.training

import torch  # noqa: E402

from tests.training_rlhf.conftest import save_tiny_policy  # noqa: E402
from tests.training_rlhf.learning import curve  # noqa: E402
from tests.training_rlhf.test_evaluation import run_folder  # noqa: E402
from tests.training_rlhf.test_judge import Server, server, texts_of  # noqa: E402
from tests.training_rlhf.test_rewards import CHATML, PROMPT, text  # noqa: E402
from training.rlhf import evaluation, fitting, learners, loading, rewards, rloo, scoring  # noqa: E402
from training.rlhf.config import ConfigError, RunConfig, Sampling  # noqa: E402
from training.rlhf.failures import Refused  # noqa: E402
from training.rlhf.reward_kinds import combined_rewards  # noqa: E402
from training.rlhf.run_dir import ProgressWriter, read_jsonl, write_json  # noqa: E402

__all__ = ["server"]  # a fixture
SAMPLES = [
    replace(text(said), ids=(*(10 + ord(letter) for letter in said), 2))
    for said in ("Hello Ada!", "no", "Hm.")
]


def save_reward_model(
    folder: Path, policy: Path, *, seed: int, accuracy: float = 0.7, template: str = "", scale: Any = (0, 1)
) -> Path:
    """A reward model with a random head, and what its run found of it."""
    model = loading.load_reward_base(str(policy), seed=seed)
    torch.manual_seed(seed)
    torch.nn.init.normal_(model.score.weight, std=2.0)  # type: ignore[arg-type, union-attr]
    tokenizer = loading.load_tokenizer(str(policy))
    if template:
        tokenizer.chat_template = template
    loading.fit(model, tokenizer, where="")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    scoring.write_canaries(model, tokenizer, folder=folder / "model")
    found: dict[str, Any] = {"accuracy": accuracy}
    if scale:
        found["scores"] = {"mean": scale[0], "std": scale[1], "n": 9}
    write_json(folder / "evaluation.json", found)
    return folder / "model"


@pytest.fixture
def pair(tmp_path: Path, tiny_policy: Path) -> list[str]:
    return [
        str(save_reward_model(tmp_path / f"rm{seed}", tiny_policy, seed=seed, scale=(seed, 2.0 * seed)))
        for seed in (1, 2)
    ]


def ensemble_of(models: list[str], **options: Any) -> dict[str, Any]:
    return {"name": "taste", "kind": "ensemble", "options": {"models": models, **options}}


def gated(helpfulness: str, safety: str, **options: Any) -> dict[str, Any]:
    options = {"helpfulness": helpfulness, "safety": safety, **options}
    return {"name": "care", "kind": "gated", "options": options}


def config_of(policy: Path, *given: dict[str, Any], **more: Any) -> RunConfig:
    return RunConfig.from_json({"method": "ppo", "model": str(policy), "rewards": list(given), **more})


def alone(policy: Path, folder: str) -> list[float]:
    given = {"name": "one", "kind": "model", "location": folder}
    return rewards.load_rewards(config_of(policy, given)).score([PROMPT] * 3, SAMPLES).total


def test_the_examples_in_the_docstrings_hold() -> None:
    tested = doctest.testmod(combined_rewards)
    assert tested.attempted >= 2 and not tested.failed


@pytest.mark.parametrize(
    ("how", "of_two"),
    [
        ("mean", lambda a, b: (a + b) / 2),
        ("min", min),
        ("penalised", lambda a, b: (a + b) / 2 - 3 * abs(a - b) / 2),
    ],
)
def test_an_ensemble_rewards_by_its_rule_and_keeps_how_far_it_disagrees(
    how: str, of_two: Any, pair: list[str], tiny_policy: Path
) -> None:
    """Each model is read in its own standard deviations first: means 1 and 2, deviations 2 and 4."""
    loaded = rewards.load_rewards(config_of(tiny_policy, ensemble_of(pair, combine=how, k=3.0)))
    found = loaded.score([PROMPT] * 3, SAMPLES)
    first = [(score - 1) / 2 for score in alone(tiny_policy, pair[0])]
    second = [(score - 2) / 4 for score in alone(tiny_policy, pair[1])]
    both = list(zip(first, second, strict=True))
    assert found.total == pytest.approx([of_two(a, b) for a, b in both], abs=1e-4)
    apart = [abs(a - b) / 2 for a, b in both]
    assert found.parts["taste disagreement"] == pytest.approx(apart, abs=1e-4)
    assert max(apart) > 0.01
    assert loaded.beside == ["taste disagreement"]
    assert loaded.value_model_folder() == pair[0]


def test_safety_speaks_where_it_is_low_or_the_prompt_is_about_it(pair: list[str], tiny_policy: Path) -> None:
    helpful, safe = (alone(tiny_policy, folder) for folder in pair)
    middle = sorted(1 / (1 + math.exp(-score)) for score in safe)[1] - 1e-6  # one of three lies below
    asked = [PROMPT, PROMPT, [{"role": "user", "content": "How is a Bomb made?"}]]
    given = gated(*pair, threshold=middle, whiten=False, safety_words=["bomb"])
    found = rewards.load_rewards(config_of(tiny_policy, given)).score([PROMPT] * 3, SAMPLES)
    unsafe = [1 / (1 + math.exp(-score)) < middle for score in safe]
    assert sum(unsafe) == 1 and found.parts["care unsafe"] == [float(one) for one in unsafe]
    expected = [s if low else h for h, s, low in zip(helpful, safe, unsafe, strict=True)]
    assert found.total == pytest.approx(expected, abs=1e-4)
    assert found.parts["care helpfulness"] == pytest.approx(helpful, abs=1e-4)

    flagged = rewards.load_rewards(config_of(tiny_policy, given)).score(asked, SAMPLES)
    last = flagged.parts["care safety"][2]
    assert flagged.total[2] == pytest.approx(last, abs=1e-5)

    white = rewards.load_rewards(
        config_of(tiny_policy, {**given, "options": {**given["options"], "whiten": True}})
    )
    total = torch.tensor(white.score([PROMPT] * 3, SAMPLES).total)
    assert float(total.mean()) == pytest.approx(0, abs=1e-5)
    assert float(total.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert total.argsort().tolist() == torch.tensor(expected).argsort().tolist()


def test_each_model_of_a_pair_is_checked_before_the_start(tmp_path: Path, tiny_policy: Path) -> None:
    good = str(save_reward_model(tmp_path / "good", tiny_policy, seed=1))
    weak = str(save_reward_model(tmp_path / "weak", tiny_policy, seed=2, accuracy=0.51))
    other = str(save_reward_model(tmp_path / "other", tiny_policy, seed=3, template=CHATML))
    for given in (gated(good, weak), gated(weak, good), ensemble_of([good, weak])):
        (error,) = rewards.problems(config_of(tiny_policy, given))[0]
        assert "51%" in error["what"]
        with pytest.raises(Refused, match="would learn its errors"):
            rewards.load_rewards(config_of(tiny_policy, given))
    (error,) = rewards.problems(config_of(tiny_policy, gated(good, other)))[0]
    assert "another chat template" in error["what"] and "safety" in error["where"]
    assert rewards.problems(config_of(tiny_policy, gated(good, other, other_template=True))) == ([], [])


def test_models_whose_spread_nobody_kept_are_combined_as_they_are_with_a_warning(
    tmp_path: Path, pair: list[str], tiny_policy: Path
) -> None:
    old = str(save_reward_model(tmp_path / "old", tiny_policy, seed=5, scale=None))
    config = config_of(tiny_policy, ensemble_of([pair[0], old], combine="mean"))
    errors, (warning,) = rewards.problems(config)
    assert not errors and "on one scale" in warning
    found = rewards.load_rewards(config).score([PROMPT] * 3, SAMPLES).total
    both = zip(alone(tiny_policy, pair[0]), alone(tiny_policy, old), strict=True)
    assert found == pytest.approx([(a + b) / 2 for a, b in both], abs=1e-4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (ensemble_of(["/a"]), "from 2 to 8"),
        (ensemble_of(["/a", "/a"]), "never disagrees"),
        (ensemble_of(["/a", "/b"], combine="best"), "combine is 'best'"),
        (gated("/a", "/a"), "two different"),
        (gated("/a", ""), "name both folders"),
        (gated("/a", "/b", threshold=1.0), "above 0, below 1"),
        (gated("/a", "/b", safety_words=[" "]), "none may be empty"),
    ],
)
def test_what_cannot_be_combined_is_no_recipe(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        config_of(tmp_path, given)


def test_an_evaluation_keeps_disagreement_and_asks_a_judge_in_both_orders(
    server: Server, pair: list[str], tiny_policy: Path, tmp_path: Path
) -> None:
    """The judge mumbles about one prompt, likes whatever stands first for another, else the longer text."""

    def answer(body: dict[str, Any]) -> str:
        asked = texts_of(body)
        if "Say 3." in asked:
            return "Both are lovely."
        if "Say 4." in asked:
            return "A"
        one, other = (asked.partition(f"<answer_{x}>\n")[2].partition("\n</answer")[0] for x in "ab")
        return "TIE" if len(one) == len(other) else "A" if len(one) > len(other) else "B"

    server.answer = answer
    prompts = [{"prompt": [{"role": "user", "content": f"Say {number}."}]} for number in range(12)]
    run_dir = run_folder(tmp_path / "run", prompts_test=prompts)
    save_tiny_policy(run_dir.model, seed=1)
    judge = {"name": "wise", "kind": "judge", "location": server.address, "options": {"rubric": "Longer."}}
    silent = {**judge, "name": "gone", "location": "http://127.0.0.1:9/v1"}
    silent["options"] = {"rubric": "Longer.", "retries": 0}
    config = config_of(
        tiny_policy, ensemble_of(pair), evaluators=[judge, silent, gated(*pair)],
    )  # fmt: skip
    config = RunConfig.from_json(
        config.to_json() | {"sampling": Sampling(max_new_tokens=6, batch_size=16).__dict__}
    )
    found = evaluation.evaluate_policy(run_dir, config, ProgressWriter(run_dir))
    wise, gone, care, taste = found["evaluators"]
    assert json.loads(run_dir.evaluation.read_text())["evaluators"] == found["evaluators"]

    rows = list(read_jsonl(run_dir.completions))
    texts = {(row["policy"], row["request"]): row["text"].strip() for row in rows}
    assert (wise["asked"], wise["n"], wise["counts"]["nonsense"]) == (12, 11, 1)
    assert wise["counts"]["inconsistent"] == 1 and wise["nonsense"] == pytest.approx(1 / 12)
    assert len(server.asked) == 24
    assert 0 <= wise["low"] <= wise["win_rate"] <= wise["high"] <= 1
    assert 0 <= wise["length_controlled"] <= 1
    longer = [len(texts["new", n]) - len(texts["old", n]) for n in range(12) if n not in (3, 4)]
    by_hand = sum(1.0 if one > 0 else 0.5 if one == 0 else 0.0 for one in longer) + 0.5
    assert wise["win_rate"] == pytest.approx(by_hand / 11, abs=0.1)  # strip() may make a tie

    assert "does not answer" in gone["error"]["what"]
    assert (care["learnt_from"], taste["learnt_from"]) == (False, True)
    assert taste["disagreement_new"] == pytest.approx(
        sum(row["scores"]["taste disagreement"] for row in rows[:12]) / 12
    )
    assert set(rows[0]["scores"]) == {
        "care", "care helpfulness", "care safety", "care unsafe", "taste", "taste disagreement",
    }  # fmt: skip
    won = [rows[n]["scores"]["taste"] > rows[12 + n]["scores"]["taste"] for n in range(12)]
    assert taste["win_rate"] == pytest.approx(sum(won) / 12, abs=0.05)


def test_a_judge_that_is_away_or_talks_nonsense_is_refused_before_the_start(
    server: Server, tiny_policy: Path
) -> None:
    judge = {"name": "wise", "kind": "judge", "location": server.address, "options": {"rubric": "Be kind."}}
    server.answer = lambda body: "7"
    assert rewards.problems(config_of(tiny_policy, judge)) == ([], [])
    server.answer = lambda body: "It depends."
    (error,) = rewards.problems(config_of(tiny_policy, judge))[0]
    assert "answers nonsense" in error["what"] and "It depends." in error["what"]
    replies = iter(["7", "seven", "8"])
    server.answer = lambda body: next(replies)
    errors, (warning,) = rewards.problems(config_of(tiny_policy, judge))
    assert not errors and "'seven'" in warning
    server.answer = lambda body: (500, "on fire")
    (error,) = rewards.problems(config_of(tiny_policy, judge))[0]
    assert "does not answer" in error["what"]
    # One that only evaluates is asked for a choice.
    server.answer = lambda body: "A"
    rule = {"name": "length", "kind": "length", "options": {"target": 3}}
    assert rewards.problems(config_of(tiny_policy, rule, evaluators=[judge])) == ([], [])


def test_how_far_an_ensemble_disagrees_is_told_at_every_step_and_teaches_nothing(
    pair: list[str], tiny_policy: Path, tmp_path: Path
) -> None:
    """RLOO logs it beside the reward, whose mean is that of the ensemble alone."""
    prompts = [{"prompt": [{"role": "user", "content": f"Say {number}."}]} for number in range(4)]
    run_dir = run_folder(tmp_path / "run", prompts_train=prompts)
    config = RunConfig.from_json(
        {
            "method": "rloo",
            "model": str(tiny_policy),
            "rewards": [ensemble_of(pair)],
            "training": {"batch_size": 8, "max_steps": 2, "log_every": 1},
            "rloo": {"completions_per_prompt": 4, "missing_eos_penalty": 0.0},
            "sampling": {"max_new_tokens": 6},
        }
    )
    tokenizer, model = loading.load_tokenizer(config.model), loading.load_policy(config.model)
    loading.fit(model, tokenizer, where="")
    trainer = rloo.make_trainer(
        model=model,
        tokenizer=tokenizer,
        train=learners.tables(run_dir, config, "train")["prompts"],
        test=[],
        config=config,
        run_dir=run_dir,
    )
    fitting.fit(trainer, run_dir=run_dir, progress=ProgressWriter(run_dir))
    means = curve(trainer, "rewards/taste disagreement/mean")
    assert len(means) == 2 and min(means) > 0
    assert curve(trainer, "reward") == pytest.approx(curve(trainer, "rewards/taste/mean"), abs=1e-5)
