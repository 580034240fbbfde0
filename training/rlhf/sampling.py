"""A policy writes: `generate` for whoever has a model in hand, `run` for a sampling run's folder.

Completions are drawn from the policy's own distribution: the temperature and top-p asked for, nothing else.
What a model's generation_config adds (top-k, penalties, beams) would make the samples another policy's than
the one that is trained and judged, so it is set aside while the model writes, but for the tokens that it
names as the end of a turn. The seed fixes every draw of a batch; equal inputs give equal texts.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from training.rlhf import loading, rendering, scoring
from training.rlhf.config import RunConfig, Sampling
from training.rlhf.failures import Refused
from training.rlhf.model_files import positions
from training.rlhf.progress import raise_if_stopped
from training.rlhf.run_dir import ProgressWriter, RunDir, SampledCompletion, SampleRequest, read_jsonl
from training.rlhf.tuning_kinds import virtual_tokens

_FIRST_STRETCH = 32  # tokens
_SMALL = 10_000_000  # parameters


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One completion: its text, how it ended, and its tokens, the one that ended it among them.

    `prompt_ids` are the tokens that it was written after: a long prompt may have lost its oldest ones.
    """

    text: str
    finish: Literal["eos", "length"]
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.ids)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[rendering.Messages],
    *,
    sampling: Sampling,
    seed: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Sampled]:
    """One completion for each conversation, in order; the same conversation twice gives two draws.

    `on_batch` hears after each batch how many are done, and may raise to stop; a stop that was asked for is
    heard at every token and raises Cancelled. A prompt that leaves no room for `max_new_tokens` within the
    model's positions loses its oldest tokens.

    All write a stretch of tokens, then those that have not ended write on, in full batches again. A batch
    that runs until its longest text ends spends most of its steps on padding; this takes 0.4 of the time.
    """
    prompts, most = prompts_with_room(model, tokenizer, conversations, sampling=sampling)
    ends = end_ids(model, tokenizer)
    written: list[list[int]] = [[] for _ in prompts]
    # Prompts of like length share a batch, so that little is padded.
    writing = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    stretch, draws = _FIRST_STRETCH, 0
    while writing:
        tokens = min(stretch, most - len(written[writing[0]]))
        unfinished: list[int] = []
        for start in range(0, len(writing), sampling.batch_size):
            batch = writing[start : start + sampling.batch_size]
            rows = [[*prompts[index], *written[index]] for index in batch]
            config = generation_config(tokenizer, sampling, ends=ends, tokens=tokens)
            with threads_for(model), own_distribution(model):
                texts = _write_on(model, tokenizer, rows, config, seed + draws)
            for index, new in zip(batch, texts, strict=True):
                written[index] += new
                if new[-1] not in ends and len(written[index]) < most:
                    unfinished.append(index)
            draws += 1
            on_batch(len(prompts) - len(unfinished) - (len(writing) - start - len(batch)))
        writing = unfinished
        stretch *= 2  # what was written is read again each time: growing stretches keep that below double
    return [_sampled(tokenizer, prompt, ids, ends) for prompt, ids in zip(prompts, written, strict=True)]


def prompts_with_room(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[rendering.Messages],
    *,
    sampling: Sampling,
) -> tuple[list[list[int]], int]:
    """Tokens of each prompt, and how many may follow: what both leave is within the model's positions."""
    places = positions(model.config) - virtual_tokens.count(model)
    most = min(sampling.max_new_tokens, places - 1)
    room = places - most
    return [rendering.prompt_ids(tokenizer, messages)[-room:] for messages in conversations], most


def run(run_dir: RunDir, config: RunConfig, progress: ProgressWriter) -> None:
    """Carry out a sampling run: completions.jsonl for requests.jsonl, each policy loaded once.

    Lines stand in the order of the requests. The file appears by rename when all is drawn: a run that was
    stopped begins again, and draws the same.
    """
    requests = read_requests(run_dir, config)
    wanted = [(number, policy) for number, one in enumerate(requests) for policy in one["policies"]]
    texts: dict[int, Sampled] = {}  # by place in `wanted`
    progress.total_steps = len(wanted)
    for policy_number, (name, location) in enumerate(config.policies.items()):
        places = [place for place, (_, policy) in enumerate(wanted) if policy == name]
        if not places:
            continue
        progress.write(f"Loading {name}")
        tokenizer = loading.load_tokenizer(location)
        model = loading.load_policy(location, dtype=loading.serving_dtype(location))
        loading.fit(model, tokenizer, where=location)
        loading.use_device(model)

        def tell(done: int, before: int = len(texts), name: str = name) -> None:
            progress.step = before + done
            progress.write(f"{name} writes")
            raise_if_stopped()

        drawn = generate(
            model,
            tokenizer,
            [requests[wanted[place][0]]["prompt"] for place in places],
            sampling=config.sampling,
            seed=policy_seed(config.seed, policy_number),
            on_batch=tell,
        )
        texts.update(zip(places, drawn, strict=True))
    write_completions(
        run_dir,
        (
            SampledCompletion(
                request=request,
                policy=policy,
                text=texts[place].text,
                finish=texts[place].finish,
                tokens=texts[place].tokens,
            )
            for place, (request, policy) in enumerate(wanted)
        ),
    )


def write_completions(run_dir: RunDir, rows: Iterator[SampledCompletion]) -> None:
    """Write completions.jsonl whole or not at all."""
    draft = run_dir.completions.with_name(f".{run_dir.completions.name}.{os.getpid()}")
    try:
        with open(draft, "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, run_dir.completions)
    finally:
        draft.unlink(missing_ok=True)


def policy_seed(seed: int, number: int) -> int:
    """Seeds far apart: two policies, or the batches of one, never share their draws."""
    return (seed * 1_000_003 + number * 7_919_317) % 2**63


class _StopWhenAsked(StoppingCriteria):
    """Hears a stop between two tokens: a stretch of a large model takes minutes."""

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        raise_if_stopped()
        return cast(torch.BoolTensor, torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device))


@contextmanager
def own_distribution(model: PreTrainedModel) -> Iterator[None]:
    """Without the model's generation_config, from which transformers fills every setting that ours leaves."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    before = base.generation_config
    base.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        base.generation_config = before


@contextmanager
def threads_for(model: PreTrainedModel) -> Iterator[None]:
    """One thread for a small model on the CPU: steps are so short that two wait more than they work."""
    if model.device.type != "cpu" or model.num_parameters() > _SMALL:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def _write_on(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    config: GenerationConfig,
    seed: int,
) -> list[list[int]]:
    """What the model writes after each row, the token that ends it included."""
    ids, mask = scoring.padded(rows, pad_id=int(tokenizer.pad_token_id), left=True)
    cuda = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):  # whoever calls keeps their own draws
        torch.manual_seed(seed)
        output = cast(Any, model).generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            stopping_criteria=[_StopWhenAsked()],
        )
    # Behind the end of a row there is padding.
    return [_through_end(row, config.eos_token_id) for row in output[:, ids.shape[1] :].tolist()]


def generation_config(
    tokenizer: PreTrainedTokenizerBase, sampling: Sampling, *, ends: list[int], tokens: int
) -> GenerationConfig:
    draws = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=tokens,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        **(draws if sampling.temperature > 0 else {"do_sample": False}),
    )


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens at which the policy stops: those of its template, and those that the model names."""
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    more = declared if isinstance(declared, list) else [declared] if declared is not None else []
    return sorted({*rendering.end_ids(tokenizer), *more})


def _through_end(row: list[int], ends: list[int]) -> list[int]:
    place = next((index for index, token in enumerate(row) if token in ends), len(row))
    return row[: place + 1]


def _sampled(
    tokenizer: PreTrainedTokenizerBase, prompt: list[int], ids: list[int], ends: list[int]
) -> Sampled:
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    return Sampled(
        # No database takes NUL, and a policy over bytes may draw one.
        text=text.replace("\0", "\N{REPLACEMENT CHARACTER}"),
        finish="eos" if ids[-1] in ends else "length",
        prompt_ids=tuple(prompt),
        ids=tuple(ids),
    )


def read_requests(run_dir: RunDir, config: RunConfig) -> list[SampleRequest]:
    """The lines of requests.jsonl. Raises Refused when there is none, or one asks an unknown policy."""
    path = run_dir.data / "requests.jsonl"
    requests: list[SampleRequest] = list(read_jsonl(path))
    if not requests:
        raise Refused("There is nothing to write.", str(path), "Put at least one request there.")
    for number, request in enumerate(requests):
        unknown = sorted(set(request["policies"]) - set(config.policies))
        if unknown:
            raise Refused(
                f"Request {number} asks {unknown[0]!r} to write, which the recipe does not name.",
                str(path),
                "Name its location in `policies`.",
            )
    return requests
