"""How far two next-token distributions are apart, by hand and beside TRL."""

import math

import pytest

pytest.importorskip("torch")

import torch

from training.rlhf.losses.divergence import generalised_jsd

BETAS = [0.0, 0.3, 0.5, 1.0]


def logits(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities).log()


@pytest.mark.parametrize("beta", BETAS)
def test_equal_distributions_are_not_apart(beta: float) -> None:
    same = torch.randn(5, 7)
    assert generalised_jsd(same, same + 3.0, beta=beta).abs().max() < 1e-6  # logits know no constant


def test_the_ends_are_the_two_kl_divergences_by_hand() -> None:
    student, teacher = logits([0.5, 0.5]), logits([0.25, 0.75])
    forward = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)  # 0.1308
    reverse = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)  # 0.1438
    assert generalised_jsd(student, teacher, beta=0).item() == pytest.approx(forward, abs=1e-6)
    assert generalised_jsd(student, teacher, beta=1).item() == pytest.approx(reverse, abs=1e-6)


def test_in_the_middle_it_is_symmetric_and_at_most_ln_2() -> None:
    one, other = torch.randn(20, 9) * 9, torch.randn(20, 9) * 9
    apart = generalised_jsd(one, other, beta=0.5)
    assert torch.allclose(apart, generalised_jsd(other, one, beta=0.5), atol=1e-5)
    assert (apart > 0).all()
    assert (apart <= math.log(2) + 1e-5).all()


@pytest.mark.parametrize("beta", BETAS)
def test_it_equals_trls(beta: float) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    student, teacher = torch.randn(3, 4, 11), torch.randn(3, 4, 11)
    theirs = gkd.GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, reduction="sum")
    ours = generalised_jsd(student.flatten(0, 1), teacher.flatten(0, 1), beta=beta).sum()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-4)
