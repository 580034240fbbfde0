"""Make the starter policy again: `python -m training.rlhf.starter.build OUT [--seed 0] [--steps 600]`.

A byte-level BPE tokenizer and a Llama of about one million parameters, trained from scratch on stories of
mixed quality from world.py: the policy has learnt to write, not what people like. What the repository ships
in `policy/` was made by this program; the same seed, machine and libraries give the same weights.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from training.rlhf import rendering, scoring
from training.rlhf.starter import world

SHIPPED = Path(__file__).parent / "policy"

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
VOCABULARY = 768
POSITIONS = 2048  # far beyond any story, so that prompts from elsewhere can be tried
# The usual 0.02 is for wide models. At width 128 it costs hundreds of steps before the model learns to look
# the creature and the thing up in the prompt: 260 steps of 48 rows did not suffice, with 0.08 150 of 16 do.
INIT = 0.08

# Every turn stands between two special tokens: no token can join a prompt and its answer, earlier turns never
# change, and each turn of the assistant ends with EOS. A role that it does not know is read as the user's.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' -}}"
    "{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}"
    "{%- else -%}"
    "{{- ('<|system|>' if message['role'] == 'system' else '<|user|>') + message['content'] + '<|end|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

Conversation = list[dict[str, str]]


def conversations(count: int, *, seed: int, is_first_lesson: bool = False) -> Iterator[Conversation]:
    """Training prompts with a story each; the world's test prompts are left out.

    The stories are of mixed quality. In the first lesson they are short and on topic, because a model that
    cannot yet tell what is asked learns nothing from stories that ignore it.
    """
    rng = random.Random(seed)
    prompts = world.prompts(4900, seed=seed)
    for _ in range(count):
        prompt = rng.choice(prompts)
        answer = short_story(prompt, rng) if is_first_lesson else world.story_for(prompt, rng)
        yield [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def short_story(prompt: str, rng: random.Random) -> str:
    """On topic, at most one deed, of either kind."""
    creature, thing = world.asked_for(prompt)
    assert creature and thing, prompt
    deeds = rng.choice(((), (), (True,), (False,)))
    return world.tell(
        world.Story(creature=creature, thing=thing, deeds=deeds, has_ending=rng.random() < 0.5), rng
    )


def train_tokenizer(*, seed: int) -> PreTrainedTokenizerFast:
    """BPE over bytes: the world's words are one token each, any other Unicode text is spelt out."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = (message["content"] for one in conversations(4000, seed=seed) for message in one)
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[PAD, END, SYSTEM, USER, ASSISTANT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=POSITIONS,
            initializer_range=INIT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def batches(
    tokenizer: PreTrainedTokenizerFast, *, steps: int, rows: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and labels (of the answer), [rows, length] each. A third of the steps is the first lesson."""
    first = steps // 3
    yield from _batches(
        tokenizer, conversations(first * rows, seed=seed + 1, is_first_lesson=True), rows, seed
    )
    yield from _batches(tokenizer, conversations((steps - first) * rows, seed=seed + 2), rows, seed)


def _batches(
    tokenizer: PreTrainedTokenizerFast, talks: Iterator[Conversation], rows: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    encoded = [rendering.prompt_and_completion_ids(tokenizer, talk[:1], talk[1:]) for talk in talks]
    # Length varies little within a batch, so little is padded; the order of the batches is drawn.
    encoded.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    starts = list(range(0, len(encoded), rows))
    random.Random(seed).shuffle(starts)
    pad_id = int(tokenizer.pad_token_id)
    for start in starts:
        pairs = encoded[start : start + rows]
        ids, mask = scoring.padded([prompt + answer for prompt, answer in pairs], pad_id=pad_id)
        labels = ids.masked_fill(mask == 0, -100)
        for row, (prompt, _) in zip(labels, pairs, strict=True):
            row[: len(prompt)] = -100
        yield ids, labels


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    rows: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Next-token prediction on the answers.

    In fp32: bf16 is five times as fast on cores that know it, and 15 times slower on those that do not.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=steps, pct_start=0.1
    )
    started = time.monotonic()
    for step, (ids, labels) in enumerate(batches(tokenizer, steps=steps, rows=rows, seed=seed), start=1):
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps:
            seconds = time.monotonic() - started
            sys.stdout.write(f"step {step} of {steps}: loss {loss.item():.3f}, {seconds:.0f} s\n")
            sys.stdout.flush()


def build(out: Path, *, seed: int = 0, steps: int = 600, rows: int = 16) -> None:
    """Train and save the starter policy into `out`."""
    tokenizer = train_tokenizer(seed=seed)
    model = new_model(tokenizer, seed=seed)
    sys.stdout.write(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens\n")
    train(model, tokenizer, steps=steps, rows=rows, learning_rate=3e-3, seed=seed)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    model.bfloat16()  # 2 MB; read as fp32, so that small learning rates still move the weights
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the starter policy from scratch.")
    parser.add_argument("out", type=Path, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)
    given = parser.parse_args()
    build(given.out, seed=given.seed, steps=given.steps)


if __name__ == "__main__":
    main()
