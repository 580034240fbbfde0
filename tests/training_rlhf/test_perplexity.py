"""Perplexity: worked examples, and policies whose answer is known."""

import doctest
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.training

import torch  # noqa: E402

from tests.training_rlhf.learning import answered  # noqa: E402
from training.rlhf import loading, rendering  # noqa: E402
from training.rlhf.measures import perplexity as perplexity_module  # noqa: E402
from training.rlhf.measures.perplexity import figures, perplexity  # noqa: E402
from training.rlhf.rows.single_rows import Demonstration, TextRow  # noqa: E402


def shown(number: int, text: str) -> Demonstration:
    row = answered(number, text)
    return Demonstration(line=number, prompt=row["prompt"], completion=row["completion"])


def policy_of(folder: Path) -> tuple[Any, Any]:
    return loading.load_policy(str(folder)), loading.load_tokenizer(str(folder))


def test_the_examples_of_the_module_hold() -> None:
    tested = doctest.testmod(perplexity_module)
    assert tested.attempted and not tested.failed


def test_four_tokens_of_which_each_was_one_of_eight_have_a_perplexity_of_eight() -> None:
    found = figures([(math.log(8), 1), (3 * math.log(8), 3)])
    assert found is not None
    assert found["perplexity"] == pytest.approx(8.0)
    assert (found["tokens"], found["rows"]) == (4, 2)
    assert found["low"] == found["high"] == pytest.approx(math.log(8))  # rows do not differ


def test_a_mean_is_over_tokens_and_its_interval_over_rows() -> None:
    found = figures([(1.0, 1), (1.0, 3)])
    assert found is not None
    assert found["nats_per_token"] == 0.5
    # Residuals 1 - 0.5 and 1 - 1.5; variance (0.25 + 0.25) * 2 / 1 = 1, so the error of the mean is 1 / 4.
    assert (found["low"], found["high"]) == pytest.approx((0.5 - 0.49, 0.5 + 0.49))


def test_one_row_tells_nothing_of_how_rows_differ_and_none_tells_nothing() -> None:
    found = figures([(2.0, 2)])
    assert found is not None
    assert (found["nats_per_token"], found["low"], found["high"]) == (1.0, None, None)
    assert figures([]) is None
    assert figures([(0.0, 0)]) is None


def test_a_policy_that_finds_all_tokens_alike_has_as_much_perplexity_as_tokens(tiny_policy: Path) -> None:
    model, tokenizer = policy_of(tiny_policy)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    rows: list[Demonstration | TextRow] = [shown(1, "Hello!"), TextRow(line=1, text="Hello, sea.")]
    found = perplexity(model, tokenizer, rows)
    assert found is not None
    assert found["perplexity"] == pytest.approx(model.config.vocab_size, rel=1e-4)
    assert found["tokens"] == len("Hello!") + 1 + len("Hello, sea.")  # EOS of both, without the first letter


def test_it_is_what_the_model_itself_says_of_the_completion(tiny_policy: Path) -> None:
    model, tokenizer = policy_of(tiny_policy)
    rows = [shown(1, "Hello!"), shown(2, "Good day to you.")]
    nats, tokens = 0.0, 0
    for row in rows:
        before, completion = rendering.prompt_and_completion_ids(tokenizer, row.prompt, row.completion)
        ids = torch.tensor([[*before, *completion]])
        labels = torch.tensor([[-100] * len(before) + completion])
        nats += float(model(input_ids=ids, labels=labels).loss.detach()) * len(completion)
        tokens += len(completion)
    found = perplexity(model, tokenizer, rows)
    assert found is not None
    assert found["tokens"] == tokens
    assert found["nats_per_token"] == pytest.approx(nats / tokens, rel=1e-5)


def test_a_text_beyond_the_positions_is_read_in_stretches_and_such_a_demonstration_left_out(
    tiny_policy: Path,
) -> None:
    model, tokenizer = policy_of(tiny_policy)  # 256 positions
    found = perplexity(model, tokenizer, [TextRow(line=1, text="a" * 299)])
    assert found is not None
    assert (found["tokens"], found["rows"]) == (255 + 43, 1)
    assert perplexity(model, tokenizer, [shown(1, "a" * 300)]) is None
    assert perplexity(model, tokenizer, []) is None
