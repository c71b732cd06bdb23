"""The trainers of the stages, and their callbacks."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..data.files import saving, write_json
from ..evaluation.metrics import alignment_metrics
from ..processing_xacle import IGNORED
from .collators import TrainingRows
from .freezing import alignment_model
from .losses import (
    COMPARING_LOSSES,
    NUM_BINS,
    balancing_weights,
    get_loss,
    global_list_loss,
    rating_bins,
    scale_gradient,
)
from .recipes import StageArguments

logger = logging.get_logger(__name__)

SAMPLES_FILE = "sample_captions.json"
SAMPLE_TOKENS = 60


class EpochCallback(TrainerCallback):
    """Tells the training rows which epoch they are in, before an epoch's first batch."""

    def __init__(self, rows: TrainingRows):
        self.rows = rows

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets the epoch. A run resumed in the middle of one has a fraction in `state.epoch`."""
        self.rows.set_epoch(math.floor(state.epoch or 0))


class FiniteLossCallback(TrainerCallback):
    """Stops training when the loss becomes NaN or infinite."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Checks the training loss since the last log, if `logs` holds it."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss is {loss} at step {state.global_step}: lower --learning_rate, or look for broken sounds or "
                "labels. Checkpoints since the loss was last logged are of no use."
            )


class StageTrainer(Trainer):
    """
    The part that all stages share: evaluations of whole splits, weight decay on all trained weights (as in the
    published code) but single rows of an embedding, checkpoints that are never half written, and no pickled arguments.
    """

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        """Leaves out the last, incomplete list of a training epoch; `Trainer` would leave it out of evaluations too."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _get_train_sampler(self, *args: Any) -> Sampler | None:
        """Leaves out an epoch's last, incomplete list also where a list is accumulated over several batches."""
        sampler = super()._get_train_sampler(*args)
        if not (isinstance(sampler, RandomSampler) and self.args.dataloader_drop_last):
            return sampler
        size = len(sampler.data_source)
        return RandomSampler(sampler.data_source, num_samples=size - size % self.get_total_train_batch_size(self.args))

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """
        Returns all weights, norms and biases included, as in the published code; but not an embedding of which only
        some rows are trained, because decay would move the others.
        """
        inner = alignment_model(model)
        names = [name for name, _ in model.named_parameters()]
        embedding = inner.get_input_embeddings().weight
        if any(weight.requires_grad for weight in inner.language_model.parameters() if weight is not embedding):
            return names
        rows_only = {name for name, weight in model.named_parameters() if weight is embedding}
        return [name for name in names if name not in rows_only]

    def _save_checkpoint(self, *args: Any) -> None:
        folder = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with saving(folder) if self.args.should_save else nullcontext():
            super()._save_checkpoint(*args)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)


def find_weights(rows: Dataset) -> torch.Tensor:
    """Returns the weight `(10,)` of each rating bin of the training split, and logs it with the bin's pairs."""
    labels = torch.tensor(rows["label"][:], dtype=torch.float32)
    weights, counts = balancing_weights(labels), rating_bins(labels).bincount(minlength=NUM_BINS)
    listed = [f"{n} pairs x {w:.3g}" for n, w in zip(counts.tolist(), weights.tolist(), strict=True)]
    logger.info(f"Class balance, by rating bins from 0 to 1 up to 9 to 10: {', '.join(listed)}.")
    return weights


class PairTrainer(StageTrainer):
    """
    Stages 2 and 3: a loss over lists of pairs, validated by rank correlation.

    A loss that compares pairs sees all batches of an optimiser step as one list. If batches are accumulated, a first
    pass computes all their logits without gradients; in the second, each batch replaces its part of them by logits with
    gradients, and the gradients add up to those of one large batch.

    Args:
        stage (`StageArguments`): Names the loss, its scope, and whether it is balanced.
    """

    loss_is_scaled_for_ga = False

    def __init__(self, stage: StageArguments, **kwargs: Any):
        super().__init__(compute_metrics=self.metrics, **kwargs)
        weights = find_weights(kwargs["train_dataset"].rows) if stage.class_balance else None
        self.list_loss = get_loss(stage.loss, stage.temperature, stage.one_sided, weights)
        self.compares = stage.loss in COMPARING_LOSSES
        self.batches: list[dict[str, torch.Tensor]] = []  # the current step's
        self.seen: list[torch.Tensor] = []  # their logits and labels, each (2, batch_size)
        self.place = 0  # the next batch's index in the step
        self.global_list = stage.list_scope == "global"
        self.caption_weight = stage.caption_weight

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Returns the loss of the list that the batch `(batch_size,)` is, or belongs to."""
        if self.compares and len(self.batches) > 1 and not self.seen:
            self.see_batches(model)
        labels, is_own = inputs.pop("labels"), inputs.pop("is_own", None)
        outputs = model(**inputs)
        logits, labels = self.widen(outputs.logits, labels.to(outputs.logits))
        loss = global_list_loss(self.list_loss, logits, labels) if self.global_list else self.list_loss(logits, labels)
        loss = scale_gradient(loss, max(1, len(self.seen)))  # `Trainer` divides by the number of batches
        if is_own is not None:  # over the whole batch, so that processes weigh each pair alike
            loss = loss - self.caption_weight * (outputs.caption_log_likelihood * is_own).mean()
        return (loss, outputs) if return_outputs else loss

    def get_batch_samples(self, *args: Any) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | int | None]:
        """Returns the batches of an optimiser step, and keeps them for the first pass."""
        self.batches, count = super().get_batch_samples(*args)
        self.seen, self.place = [], 0
        return self.batches, count

    @torch.no_grad()
    def see_batches(self, model: nn.Module) -> None:
        """Runs the first pass over a step's batches; the second starts from the same seed, for the same dropout."""
        seed = int(torch.randint(2**62, ()))
        torch.manual_seed(seed)
        for batch in self.batches:
            inputs = self._prepare_inputs(batch)
            labels = inputs.pop("labels")
            inputs.pop("is_own", None)
            logits = model(**inputs).logits
            self.seen.append(torch.stack([logits, labels.to(logits)]))
        torch.manual_seed(seed)

    def widen(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Logits and labels `(batch_size,)` -> `(list_size,)`: adds those of the step's other batches, if the first pass
        computed them; gradients flow to the batch's own.
        """
        before, after = self.seen[: self.place], self.seen[self.place + 1 :]
        self.place += 1
        logits, labels = torch.cat([*before, torch.stack([logits, labels]), *after], dim=1)
        return logits, labels

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Returns logits and labels, each `(batch_size,)`; a loss would depend on how the split falls into lists."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        inputs.pop("is_own", None)
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs).logits
        return None, logits, labels

    def scores_and_references(self, prediction: EvalPrediction) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits and labels `(num_pairs,)` on the 0-10 scale."""
        config = self.accelerator.unwrap_model(self.model).config
        scores = config.logits_to_scores(prediction.predictions.astype(np.float64))
        references = (prediction.label_ids.astype(np.float64) + 1) * (config.score_max - config.score_min) / 2
        if not np.isfinite(scores).all():
            raise ValueError("The model's scores are not finite: lower --learning_rate.")
        return scores, references + config.score_min

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Returns the official metrics of the whole split."""
        found = alignment_metrics(*self.scores_and_references(prediction))
        return {name.lower(): value for name, value in found.items() if name != "N"}


def keep_captions(inputs: dict[str, torch.Tensor], prompt_length: int) -> dict[str, torch.Tensor]:
    """
    Restricts inputs of [`XacleForConditionalGeneration`] to the logits of the captions: `labels` of shape `(batch_size,
    sequence_length)` lose the prompt, and each remaining logit predicts the label in its place. This pays because most
    of a sequence is sound, and the LM head is more than a third as large as all layers before it.
    """
    labels = inputs["labels"]
    places = torch.arange(prompt_length, labels.shape[1], device=labels.device)
    return {**inputs, "labels": labels[:, prompt_length:], "logits_to_keep": places - 1}


def caption_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int) -> torch.Tensor:
    """
    Returns the captions' cross entropy, summed over a batch and divided by the number of tokens that count in the
    whole step, over all processes and accumulated batches.

    Args:
        outputs (`CausalLMOutputWithPast`): With `logits` `(batch_size, caption_length, vocab_size)`, as
            [`keep_captions`] asks for them.
        labels (`torch.Tensor` of shape `(batch_size, caption_length)`): What each logit should predict; -100 where
            nothing counts.
        num_items_in_batch (`torch.Tensor` or `int`): Tokens that count in the step.
    """
    return token_losses(outputs.logits, labels).sum() / num_items_in_batch


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the cross entropy of each token, `(batch_size, caption_length)`; 0 where no token is predicted."""
    losses = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(labels)


class CaptionTrainer(StageTrainer):
    """Stage 1: next-token cross entropy, validated by perplexity over all tokens, with sample captions."""

    def __init__(self, stage: StageArguments, **kwargs: Any):
        super().__init__(compute_loss_func=caption_loss, compute_metrics=self.metrics, **kwargs)
        self.num_samples = stage.num_sample_captions

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        inputs = super()._prepare_inputs(inputs)
        prompt = self.processing_class.audio_and_score_ids[:-1]
        return keep_captions(inputs, len(prompt)) if "labels" in inputs else inputs

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Returns each caption's summed cross entropy and number of tokens, both `(batch_size,)`."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            losses = token_losses(model(**inputs).logits, labels).sum(dim=1)
        return None, losses, (labels != IGNORED).sum(dim=1)

    @staticmethod
    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        """Returns the mean loss per token from `(num_captions,)` sums and counts, and perplexity, its exponential."""
        loss = float(prediction.predictions.astype(np.float64).sum() / prediction.label_ids.sum())
        return {"loss": loss, "perplexity": math.exp(loss)}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates as any trainer, and also captions some clips."""
        metrics = super().evaluate(*args, **kwargs)
        self.write_samples()
        return metrics

    def write_samples(self) -> None:
        """Caption some clips of the validation split greedily, into the log and a file in the output folder."""
        if not self.num_samples:
            return
        spacing = max(1, len(self.eval_dataset) // self.num_samples)  # neighbours are often captions of one clip
        rows = list(self.eval_dataset.select(range(0, len(self.eval_dataset), spacing)))[: self.num_samples]
        processor = self.processing_class
        prompts = processor.pad([processor.audio_and_score_ids[:-1]] * len(rows))
        inputs = self._prepare_inputs({**prompts, **self.data_collator.audio(rows)})
        model = self.accelerator.unwrap_model(self.model)
        generated = model.generate(**inputs, max_new_tokens=SAMPLE_TOKENS, do_sample=False)
        captions = processor.batch_decode(generated, skip_special_tokens=True)
        samples = [
            {"id": row["id"], "reference": row["text"], "caption": caption}
            for row, caption in zip(rows, captions, strict=True)
        ]
        if self.is_world_process_zero():
            for sample in samples:
                logger.info("%(id)s: %(caption)r (reference: %(reference)r)", sample)
            write_json(Path(self.args.output_dir, SAMPLES_FILE), samples)
