"""Training steps of a stage: ours, ours from stored features, and the reference's."""

from collections.abc import Callable
from typing import Any

import reference
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from workbench import Workbench

from modeling_xacle.losses import list_net_loss
from modeling_xacle.processing_xacle import IGNORED
from modeling_xacle.trainers import caption_loss, keep_captions

# As `run_stage.py` has them by default.
LEARNING_RATE, WEIGHT_DECAY, MAX_GRADIENT_NORM = 1e-5, 0.01, 1.0


class TrainingSteps:
    """
    Steps on one batch, with one optimiser.

    Args:
        bench (`Workbench`): Gives sounds and captions.
        model (`nn.Module`): As `bench.stage` gives it.
        stage (`int`): Which.
        pairs (`int`): Of the batch.
    """

    def __init__(self, bench: Workbench, model: nn.Module, stage: int, pairs: int):
        self.bench, self.model, self.stage = bench, model, stage
        self.waveforms, self.captions = bench.waveforms(pairs), bench.captions(pairs)
        self.stored = bench.encode(bench.extractor.log_mel(self.waveforms))
        self.labels = torch.linspace(-1, 1, pairs, device=bench.device)
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)

    def forms(self) -> dict[str, Callable[[], Any]]:
        """What to call for a step of each form."""
        return {
            "ours": lambda: self.step(self.our_loss(self.bench.encode(self.bench.extractor.log_mel(self.waveforms)))),
            "ours, cached": lambda: self.step(self.our_loss(self.stored)),
            "reference": lambda: self.step(self.reference_loss()),
        }

    def step(self, loss: torch.Tensor) -> None:
        """Gradients of a loss `()`, clipped, and the optimiser's step."""
        loss.backward()
        clip_grad_norm_(self.weights, MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def our_loss(self, features: torch.Tensor) -> torch.Tensor:
        """The stage's loss `()` from audio features `(batch_size, num_audio_tokens, audio_hidden_size)`."""
        with self.bench.autocast():
            if self.stage > 1:
                batch = self.bench.pad(self.captions)
                return list_net_loss(self.model(**batch, audio_features=features).logits, self.labels)
            prompt = self.bench.processor.audio_and_score_ids[:-1]
            batch = keep_captions(self.caption_batch(), len(prompt))
            targets = batch.pop("labels")
            outputs = self.model(**batch, audio_features=features)
            return caption_loss(outputs, targets, (targets != IGNORED).sum())

    def reference_loss(self) -> torch.Tensor:
        """The same loss, from the waveforms."""
        features = self.bench.reference_encode(self.waveforms)
        if self.stage > 1:
            return list_net_loss(reference.score(self.bench.model, self.captions, features), self.labels)
        batch = self.caption_batch()
        return reference.caption_loss(self.bench.captioner, batch["input_ids"], batch["labels"], features)

    def caption_batch(self) -> dict[str, torch.Tensor]:
        """Sequences `(batch_size, sequence_length)` of stage 1, padded at the end, and their targets."""
        prompt, end = self.bench.processor.audio_and_score_ids[:-1], self.bench.config.end_token_id
        batch = self.bench.processor.pad([[*prompt, *ids, end] for ids in self.captions], self.bench.device)
        targets = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        targets[:, : len(prompt)] = IGNORED
        return {**batch, "labels": targets}
