"""GRPO: an advantage is how far a completion lies above the mean of its prompt's (2402.03300, section 4.1.2).

TRL's trainer, with a KL term in the loss and advantages divided by the group's standard deviation; Dr. GRPO
(2503.20783, section 3.2) leaves that out, for it favours prompts that are nearly always or never answered
well. What is drawn and how it is scored is ours (training.rlhf.online).
"""

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from training.rlhf.config import RunConfig
from training.rlhf.online import OnlineTrainer, make_ready_to_draw, parts_of_trainer, shared_arguments
from training.rlhf.online import check as check  # before the start (training.rlhf.learners)
from training.rlhf.rows.single_rows import PromptRow
from training.rlhf.run_dir import RunDir


class GroupTrainer(OnlineTrainer, GRPOTrainer):
    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        """Without the sampler's log-probabilities: the model that drew is the one that learns."""
        return super()._generate_single_turn(prompt_ids, *args, **kwargs), None


def make_trainer(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: list[PromptRow],
    test: list[PromptRow],
    config: RunConfig,
    run_dir: RunDir,
) -> GroupTrainer:
    """A trainer over the model as it is now, which is also the reference. Raises Refused for the rewards."""
    arguments = shared_arguments(config.grpo, config, run_dir)
    trainer = GroupTrainer(
        args=GRPOConfig(
            **arguments,
            loss_type=config.grpo.loss,
            scale_rewards="none" if config.grpo.loss == "dr_grpo" else "group",
        ),
        **parts_of_trainer(
            config.grpo, model=model, tokenizer=tokenizer, train=train, test=test, config=config
        ),
    )
    make_ready_to_draw(trainer, config)
    return trainer
