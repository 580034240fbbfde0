"""Several reward models as one: worked examples, what must hold, and models from folders."""

import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.training

from tests.training_rlhf.conftest import pair_row, save_tiny_policy  # noqa: E402
from training.rlhf import loading, scoring  # noqa: E402
from training.rlhf.failures import Refused  # noqa: E402
from training.rlhf.reward_kinds import ensemble  # noqa: E402

SCORES = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 6.0]])  # two models, three items


def test_the_mean_the_least_and_what_doubt_takes_away_by_hand() -> None:
    expected: dict[ensemble.Combination, list[float]] = {
        "mean": [2, 2, 3], "min": [1, 2, 0], "penalised": [1.5, 2, 1.5],
    }  # fmt: skip
    for how, rewards in expected.items():
        found = ensemble.combined(SCORES, how=how, k=0.5)
        assert found.rewards.tolist() == pytest.approx(rewards)
        assert found.disagreement.tolist() == pytest.approx([1, 0, 3])


def test_models_that_agree_leave_nothing_to_doubt() -> None:
    same = torch.tensor([[0.3, -1.0]] * 3)
    for how in ensemble.COMBINATIONS:
        found = ensemble.combined(same, how=how, k=5.0)
        assert found.rewards.tolist() == pytest.approx([0.3, -1.0])
        assert found.disagreement.tolist() == pytest.approx([0, 0])


def test_doubt_never_makes_a_reward_larger() -> None:
    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    mean, least, penalised = (ensemble.combined(scores, how=how).rewards for how in ensemble.COMBINATIONS)
    assert bool((least <= mean).all() and (penalised <= mean).all())


def test_zeros_and_spreads_of_models_do_not_matter_once_they_are_standardised() -> None:
    moved = SCORES * torch.tensor([[10.0], [0.5]]) + torch.tensor([[100.0], [-7.0]])
    found = [
        ensemble.standardised(scores, mean=scores.mean(1), std=scores.std(1, correction=0))
        for scores in (SCORES, moved)
    ]
    assert found[0].flatten().tolist() == pytest.approx(found[1].flatten().tolist(), abs=1e-4)
    flat = torch.full((1, 2), 3.0)
    assert ensemble.standardised(flat, mean=flat.mean(1), std=torch.zeros(1)).tolist() == [[0, 0]]


def test_safety_speaks_below_its_threshold_and_for_prompts_about_safety() -> None:
    """Probabilities of safety 0.5, 0.1 and 0.99."""
    safety = torch.tensor([0.0, math.log(1 / 9), math.log(99)])
    helpfulness = torch.tensor([1.0, 2.0, 3.0])
    found = ensemble.safe_or_helpful(helpfulness, safety)
    assert found.tolist() == pytest.approx([1, math.log(1 / 9), 3])
    flagged = torch.tensor([True, False, False])
    found = ensemble.safe_or_helpful(helpfulness, safety, is_safety_prompt=flagged)
    assert found.tolist() == pytest.approx([0, math.log(1 / 9), 3])
    # The threshold itself is a probability: 0.05 lets the second pass.
    assert ensemble.safe_or_helpful(helpfulness, safety, threshold=0.05).tolist() == [1, 2, 3]


def test_whitened_values_have_mean_zero_and_deviation_one_and_keep_their_order() -> None:
    values = torch.tensor([4.0, -2.0, 7.0, 7.5])
    white = ensemble.whitened(values)
    assert float(white.mean()) == pytest.approx(0, abs=1e-6)
    assert float(white.std(correction=0)) == pytest.approx(1)
    assert white.argsort().tolist() == values.argsort().tolist()
    assert ensemble.whitened(values, mean=4.0, std=2.0).tolist() == [0, -3, 1.5, 1.75]
    assert ensemble.whitened(torch.tensor([3.0, 3.0])).tolist() == [0, 0]
    assert ensemble.whitened(torch.tensor([3.0])).tolist() == [0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    found = []
    for seed in (1, 2):
        policy, folder = tmp_path_factory.mktemp("policy"), tmp_path_factory.mktemp("reward")
        save_tiny_policy(policy, seed=seed)
        tokenizer = loading.load_tokenizer(str(policy))
        model = loading.load_reward_base(str(policy), seed=seed)
        loading.fit(model, tokenizer, where="")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        scoring.write_canaries(model, tokenizer, folder=folder)
        found.append(folder)
    return found


def test_an_ensemble_from_folders_says_what_its_models_say(folders: list[Path]) -> None:
    talks = [[*row["prompt"], *row["chosen"]] for row in map(pair_row, range(5))]
    alone = [scoring.reward_scores(*loading.load_reward_model(folder), talks) for folder in folders]
    several = ensemble.Ensemble.load(folders)
    scores = several.scores(talks, batch_size=2)
    for ours, theirs in zip(scores.tolist(), alone, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    least = several.rewards(talks, how="min")
    assert least.rewards.tolist() == pytest.approx([min(pair) for pair in zip(*alone, strict=True)], abs=1e-5)
    apart = [abs(one - other) / 2 for one, other in zip(*alone, strict=True)]
    assert least.disagreement.tolist() == pytest.approx(apart, abs=1e-5)

    several.standardise_on(talks)
    scores = several.scores(talks)
    assert scores.mean(1).tolist() == pytest.approx([0, 0], abs=1e-4)
    assert scores.std(1, correction=0).tolist() == pytest.approx([1, 1], abs=1e-4)
    assert several.scores([]).shape == (2, 0)


def test_no_models_and_too_few_reference_texts_are_refused(folders: list[Path]) -> None:
    with pytest.raises(Refused, match="needs reward models"):
        ensemble.Ensemble.load([])
    with pytest.raises(Refused, match="two reference texts"):
        ensemble.Ensemble.load(folders[:1]).standardise_on([[{"role": "user", "content": "x"}]])
