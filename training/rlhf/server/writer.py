"""A policy writes one completion piece by piece, for somebody who waits: serving and the playground."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, TextIteratorStreamer

from training.rlhf import sampling
from training.rlhf.config import Sampling

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Wish:
    """What to write: after which tokens, how, and until when. `stop`: texts that end it, left out."""

    prompt_ids: list[int]
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Some text; the last piece says why it ended, and how many tokens were written in all."""

    text: str
    finish: Finish | None = None
    tokens: int = 0


class _StopWhenSet(StoppingCriteria):
    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        flags = torch.full((len(input_ids),), self.stop.is_set(), device=input_ids.device)
        return cast(torch.BoolTensor, flags)


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    wish: Wish,
    *,
    number: int = 0,
    stop: threading.Event | None = None,
) -> Iterator[Piece]:
    """Pieces as they are written; the last one has a `finish`. `number` gives the same wish other draws.

    Setting `stop` ends it at the next token. Whatever the model raises is raised here.
    """
    halt = stop or threading.Event()
    streamer = TextIteratorStreamer(
        tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["ids"] = _generated(model, tokenizer, wish, number, streamer, halt)
        except Exception as error:
            outcome["error"] = error
            streamer.on_finalized_text("", stream_end=True)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    met = ""
    try:
        held = ""
        for text in streamer:
            held += text
            met = _first_stop(held, wish.stop)
            if met:
                held = held[: held.index(met)]
                break
            ready = len(held) - _longest_begun(held, wish.stop)
            if ready:
                yield Piece(held[:ready])
                held = held[ready:]
    finally:
        if met:
            halt.set()
        thread.join()
    if "error" in outcome:
        raise outcome["error"]
    ids = outcome["ids"]
    ended = bool(met) or (bool(ids) and ids[-1] in sampling.end_ids(model, tokenizer))
    yield Piece(held, "stop" if ended else "length", len(ids))


@torch.inference_mode()
def _generated(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    wish: Wish,
    number: int,
    streamer: TextIteratorStreamer,
    halt: threading.Event,
) -> list[int]:
    asked = Sampling(temperature=wish.temperature, top_p=wish.top_p)
    ends = sampling.end_ids(model, tokenizer)
    config = sampling.generation_config(tokenizer, asked, ends=ends, tokens=wish.max_new_tokens)
    ids = torch.tensor([wish.prompt_ids], device=model.device)
    with sampling.own_distribution(model), sampling.threads_for(model):
        torch.manual_seed(sampling.policy_seed(wish.seed, number) % 2**63)
        output = cast(Any, model).generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            stopping_criteria=[_StopWhenSet(halt)],
            streamer=streamer,
        )
    return list(output[0, ids.shape[1] :].tolist())


def _first_stop(text: str, stops: tuple[str, ...]) -> str:
    found = [(text.index(stop), stop) for stop in stops if stop in text]
    return min(found)[1] if found else ""


def _longest_begun(text: str, stops: tuple[str, ...]) -> int:
    """How much of the end of `text` may be the beginning of a stop: it waits for what follows.

    >>> _longest_begun("so it E", ("END",)), _longest_begun("so", ("END",))
    (1, 0)
    """
    lengths = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return max(lengths, default=0)
