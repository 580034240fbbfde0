"""What pages call the settings of a recipe, and a line of help for each.

A setting that is not here appears all the same, under its own name: a section of training.rlhf.config gains a
field, and the form gains it too.
"""

# By section and name: label, help.
WORDS: dict[str, tuple[str, str]] = {
    "training.learning_rate": ("Learning rate", "How far each step goes."),
    "training.epochs": ("Epochs", "How often each row is seen."),
    "training.batch_size": ("Batch size", "Rows on the device at once."),
    "training.max_length": ("Longest row", "Tokens of prompt and completion; longer rows are dropped."),
    "training.gradient_accumulation": ("Gradient accumulation", "Batches for one step."),
    "training.max_steps": ("Steps at most", "-1: as the epochs say."),
    "training.warmup_ratio": ("Warm-up", "Share of the steps in which the learning rate rises."),
    "training.schedule": ("Schedule", "How the learning rate goes on after that."),
    "training.weight_decay": ("Weight decay", "Pulls weights towards 0."),
    "training.max_grad_norm": ("Clip gradients at", "The longest step that a batch may ask for."),
    "training.log_every": ("Steps between reports", ""),
    "training.save_every": ("Steps between checkpoints", ""),
    "training.evaluate_every": (
        "Steps between evaluations",
        "On held-out rows: the best weights are kept, and the run may stop early. 0: only at the end.",
    ),
    "training.patience": ("Stop after", "Evaluations in a row that are no better; 0: never stop early."),
    "training.min_delta": ("Better by at least", "What an evaluation has to gain to count as better."),
    "training.bf16": ("Compute in bf16", "Half the bytes for each number."),
    "training.gradient_checkpointing": ("Save memory by computing twice", ""),
    "training.group_by_length": ("Batches of rows of like length", "Less padding; another order."),
    "tuning.kind": ("Tuning", "Adapters need far less memory."),
    "tuning.lora_rank": ("LoRA rank", "Size of the adapters."),
    "tuning.lora_alpha": ("LoRA alpha", "How much they count, often twice the rank."),
    "tuning.lora_dropout": ("LoRA dropout", "Share of their inputs left out at random."),
    "tuning.lora_targets": ("LoRA targets", "Which layers get adapters."),
    "tuning.frozen_layers": ("Frozen layers", "From the first on; for “all but the first layers”."),
    "tuning.double_quantisation": ("Quantise twice", "QLoRA: the scales of the 4-bit weights too."),
    "tuning.paged_optimiser": ("Paged optimiser", "QLoRA on a GPU: its state may leave the GPU's memory."),
    "tuning.virtual_tokens": ("Virtual tokens", "Of a prefix or prompt that is learnt instead of written."),
    "tuning.bottleneck_size": ("Bottleneck size", "Width of a bottleneck adapter."),
    "sampling.temperature": ("Temperature in evaluation", "1: as the policy is; lower is less varied."),
    "sampling.top_p": ("Top p in evaluation", "1: every token may come; less: only the likelier ones."),
    "sampling.max_new_tokens": ("Longest completion in evaluation", "Tokens."),
    "sampling.batch_size": ("Completions written at once", ""),
    "reward_learning.use_margin": (
        "Stronger preferences count more",
        "A clear preference is to be told apart further than a slight one.",
    ),
    "reward_learning.ranking_loss": ("Loss of rankings", ""),
    "reward_learning.rating_loss": ("Loss of ratings", "Ordinal keeps the order and learns the distances."),
    "reward_learning.rating_weight": ("Weight of a rating", "Beside a comparison's 1; 0 leaves ratings out."),
    "reward_learning.criteria": (
        "Criteria of ratings",
        "Each with its weight in the reward: helpful 1, brief -0.5. Empty: the overall rating, or all alike.",
    ),
    "reward_learning.one_head_each": (
        "A score for each criterion",
        "Learnt apart and added up by their weights. Without: one score learns them all.",
    ),
    "judge_audit.comparisons": ("Comparisons at most", "Held-out ones; each is asked in both orders."),
    "dpo.beta": (
        "Beta",
        "How strongly the policy is held to the one it starts from: 0.1 is usual, higher stays closer.",
    ),
    "dpo.loss": ("Loss", "Sigmoid is DPO as published."),
    "dpo.label_smoothing": ("Share of wrong labels", "Of the robust loss: how often raters slip."),
    "dpo.sft_weight": (
        "Weight of an SFT term",
        "Also trains on the chosen completions as they are, to keep them likely.",
    ),
    "dpo.use_margin": (
        "Stronger preferences count more",
        "A clear preference is to be told apart further than a slight one.",
    ),
    "kto.beta": (
        "Beta",
        "How strongly the policy is held to the one it starts from: 0.1 is usual, higher stays closer.",
    ),
    "kto.desirable_weight": ("Weight of good ones", "Raise it when few completions are good."),
    "kto.undesirable_weight": ("Weight of bad ones", "Raise it when few completions are bad."),
    "kto.good_from": ("Good from", "A rating from here up is good."),
    "kto.bad_to": ("Bad up to", "A rating from here down is bad; what lies between is left out."),
    "ppo.rollout_size": ("Completions in a rollout", "Written before the weights move."),
    "ppo.epochs": ("Passes over a rollout", ""),
    "ppo.gamma": ("Gamma", "1: a token counts for all that follows it."),
    "ppo.lam": ("Lambda", "Between trust in the value function (0) and in what was seen (1)."),
    "ppo.clip": ("Clip", "How far the probability of a token may move on one rollout."),
    "ppo.value_clip": ("Clip of the value function", ""),
    "ppo.value_weight": ("Weight of the value loss", ""),
    "ppo.entropy_weight": ("Weight of the entropy", "Above 0 the policy keeps more variety."),
    "ppo.kl_coefficient": (
        "KL coefficient",
        "The price of moving away from the policy it starts from; it adapts from here.",
    ),
    "ppo.kl_target": ("KL aimed at", "Nats a completion. 0 keeps the coefficient as it is."),
    "ppo.kl_horizon": ("KL horizon", "Completions over which the coefficient adapts."),
    "ppo.normalise_rewards": ("Divide rewards by their spread", ""),
    "ppo.whiten_advantages": ("Whiten advantages", "To mean 0 and spread 1."),
    "ppo.missing_eos_penalty": ("Penalty for no end", "Taken from the reward of a completion that was cut."),
    "ppo.most_kl": ("Stop above a KL of", "The run ends by itself and keeps its last good checkpoint."),
    "ppo.least_entropy": ("Stop below an entropy of", "Nats a token: a policy that says one thing only."),
    "ppo.least_eos_rate": ("Stop when fewer end than", "A share of the completions."),
    "rloo.completions_per_prompt": ("Completions a prompt", "Each is measured against the others."),
    "rloo.beta": ("Beta", "Weight of the KL in the reward: higher stays closer to the start."),
    "rloo.clip": ("Clip", "How far the probability of a completion may move in one update."),
    "rloo.iterations": ("Updates a batch", ""),
    "rloo.missing_eos_penalty": ("Penalty for no end", "Taken from the reward of a completion that was cut."),
    "grpo.completions_per_prompt": ("Completions a prompt", "Each is measured against its group."),
    "grpo.beta": ("Beta", "Weight of the KL in the loss: higher stays closer to the start."),
    "grpo.clip": ("Clip", "How far the probability of a token may move in one update."),
    "grpo.iterations": ("Updates a batch", ""),
    "grpo.loss": ("Loss", "How a completion's tokens are averaged."),
    "grpo.missing_eos_penalty": ("Penalty for no end", "Taken from the reward of a completion that was cut."),
    "rejection_sampling.completions_per_prompt": ("Completions a prompt", "The best of them is learnt."),
    "distillation.teacher": ("Teacher", "Whose way of writing is learnt, token by token."),
    "distillation.system_prompt": (
        "System prompt of the teacher",
        "The teacher reads it before every prompt; the new policy learns to do without.",
    ),
    "distillation.on_policy": (
        "Share that the student writes",
        "1: the teacher only corrects what the policy writes itself; 0: it only shows.",
    ),
    "distillation.divergence": (
        "Divergence",
        "0: say all that the teacher would; 1: say only what it finds likely.",
    ),
    "vllm.use_vllm": (
        "Draw by vLLM",
        "Needs a GPU, and vLLM where the worker runs; else the built-in sampler.",
    ),
    "vllm.mode": ("Where vLLM runs", ""),
    "vllm.server_base_url": (
        "Address of vLLM's server",
        "Such as http://127.0.0.1:8000; else host and port.",
    ),
    "vllm.server_host": ("Host of vLLM's server", ""),
    "vllm.server_port": ("Port of vLLM's server", ""),
    "vllm.server_timeout": ("Seconds until it has to answer", "While it loads its model."),
    "vllm.group_port": ("Port for weights", "Over which the server is sent what was learnt."),
    "vllm.gpu_memory_utilization": ("vLLM's share of the GPU's memory", "Where it runs in the same process."),
    "vllm.max_model_length": ("Longest text in vLLM", "Tokens; 0: as the model says."),
    "vllm.tensor_parallel_size": ("GPUs for one copy in vLLM", ""),
    "vllm.enable_sleep_mode": ("vLLM leaves the GPU while the policy learns", ""),
    "vllm.model_impl": ("Model code in vLLM", ""),
    "critique_revision.rounds": ("Rounds", "Critiques and revisions of each answer, one after the other."),
    "critique_revision.prompts": ("Prompts", "Written to at most; a quarter as many held-out ones as well."),
    "ai_preferences.judge": ("Judge", "Who compares the two completions by the constitution."),
    "ai_preferences.judge_model": ("Model of the judge", "Of a server: as it names the model."),
    "ai_preferences.principles": (
        "Principles for a pair",
        "The judge is asked by so many; their mean says how sure the preference is.",
    ),
    "ai_preferences.prompts": ("Prompts", "Written to at most; a quarter as many held-out ones as well."),
    "ai_preferences.timeout": ("Seconds for an answer", "Of a server, before it is asked again."),
    "ai_preferences.retries": ("Attempts more", "Each waits twice as long as the one before."),
    "ai_preferences.at_once": ("Questions at once", "Under way at a server."),
    "ai_preferences.max_tokens": ("Longest answer of the judge", "Tokens. A, B or TIE is all that counts."),
}
# Where a method draws its own completions, some of these mean more.
WORDS_DRAWING: dict[str, tuple[str, str]] = {
    "training.epochs": ("Epochs", "How often each prompt is answered."),
    "training.batch_size": ("Batch size", "Completions on the device at once."),
    "training.max_length": ("Longest row", "Tokens of prompt and completion; longer prompts are dropped."),
    "sampling.temperature": ("Temperature", "1: as the policy is; lower is less varied."),
    "sampling.top_p": ("Top p", "1: every token may come; less: only the likelier ones."),
    "sampling.max_new_tokens": ("Longest completion", "Tokens; what is longer is cut."),
}
# Of settings with few values: the words for each.
CHOICES: dict[str, dict[str, str]] = {
    "tuning.kind": {
        "full": "All weights",
        "head": "The output head alone",
        "freeze": "All but the first layers",
        "lora": "LoRA adapters",
        "dora": "DoRA adapters",
        "qlora": "QLoRA: LoRA on a base of 4 bits",
        "bottleneck": "Bottleneck adapters",
        "ia3": "IA³: scales of activations",
        "prefix": "Prefix tuning",
        "p_tuning_v2": "P-tuning v2",
        "prompt": "Prompt tuning",
        "p_tuning": "P-tuning",
    },
    "tuning.lora_targets": {"all-linear": "Every linear layer", "attention": "Attention alone"},
    "reward_learning.ranking_loss": {"pairs": "Pair by pair", "plackett_luce": "Plackett-Luce"},
    "reward_learning.rating_loss": {"ordinal": "Ordinal", "regression": "Regression"},
    "dpo.loss": {"sigmoid": "Sigmoid", "ipo": "IPO", "hinge": "Hinge", "robust": "Robust to wrong labels"},
    "vllm.mode": {"colocate": "In the process that trains", "server": "A server beside it"},
    "vllm.model_impl": {"vllm": "vLLM's own", "transformers": "That of transformers"},
    "grpo.loss": {"grpo": "GRPO", "dapo": "DAPO", "dr_grpo": "Dr. GRPO", "bnpo": "BNPO"},
}
# Kinds of tuning that a setting belongs to; the page hides it under the others.
OF_KINDS = {
    "tuning.frozen_layers": ("freeze",),
    "tuning.lora_rank": ("lora", "dora", "qlora"),
    "tuning.lora_alpha": ("lora", "dora", "qlora"),
    "tuning.lora_dropout": ("lora", "dora", "qlora"),
    "tuning.lora_targets": ("lora", "dora", "qlora"),
    "tuning.double_quantisation": ("qlora",),
    "tuning.paged_optimiser": ("qlora",),
    "tuning.bottleneck_size": ("bottleneck",),
    "tuning.virtual_tokens": ("prefix", "p_tuning_v2", "prompt", "p_tuning"),
}


def words_of(section: str, name: str, *, draws: bool = False) -> tuple[str, str]:
    """Label and help of a setting.

    >>> words_of("ppo", "clip")
    ('Clip', 'How far the probability of a token may move on one rollout.')
    >>> words_of("tuning", "some_new_size")
    ('Some new size', '')
    """
    key = f"{section}.{name}"
    known = WORDS_DRAWING.get(key) if draws else None
    return known or WORDS.get(key) or (name.replace("_", " ").capitalize(), "")
