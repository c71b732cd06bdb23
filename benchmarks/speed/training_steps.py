"""Training steps of a stage: ours, as the stage's trainer runs them, and the one they are compared with."""

import tempfile
from collections.abc import Callable
from typing import Any

import reference
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from workbench import Workbench

from modeling_xacle.processing_xacle import IGNORED
from modeling_xacle.training.losses import list_net_loss
from modeling_xacle.training.recipes import parse_arguments
from modeling_xacle.training.trainers import CaptionTrainer, PairTrainer

STEPS = 1000  # in the schedule; no run is this long


class TrainingSteps:
    """
    Steps on one batch, with the optimiser of the stage's trainer.

    Args:
        bench (`Workbench`): Provides sounds and captions.
        model (`nn.Module`): As `bench.stage` yields it.
        stage (`int`): The stage.
        pairs (`int`): Pairs in the batch.
    """

    def __init__(self, bench: Workbench, model: nn.Module, stage: int, pairs: int):
        self.bench, self.stage = bench, stage
        self.waveforms, self.captions = bench.waveforms(pairs), bench.captions(pairs)
        self.stored = bench.encode(bench.extractor.log_mel(self.waveforms)).float()
        self.labels = torch.linspace(-1, 1, pairs, device=bench.device)
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        with tempfile.TemporaryDirectory() as folder:
            stage_arguments, args = parse_arguments(self.arguments(folder))
            args._n_gpu = 1  # one process, one GPU, as `run_stage.py` has it
            trainer = CaptionTrainer if stage == 1 else PairTrainer
            self.trainer = trainer(stage_arguments, model=model, args=args, processing_class=bench.processor)
            self.model, _ = self.trainer._prepare_for_training(STEPS, [], None)
        self.batch = self.caption_batch() if stage == 1 else {**bench.pad(self.captions), "labels": self.labels}

    def arguments(self, folder: str) -> list[str]:
        """Returns the arguments of `run_stage.py` that differ from the recipe, such as the bench's device and dtype."""
        settings = {
            "stage": self.stage,
            "output_dir": folder,
            "use_cpu": self.bench.device.type == "cpu",
            "bf16": self.bench.dtype == torch.bfloat16,
            "report_to": "none",
            "eval_strategy": "no",
            "save_strategy": "no",
            "patience": 0,
            "load_best_model_at_end": False,
        }
        return [part for name, value in settings.items() for part in (f"--{name}", str(value))]

    def forms(self) -> dict[str, Callable[[], Any]]:
        """Returns, for each of our forms, the call that takes a step."""
        return {
            "ours": lambda: self.step({"input_features": self.bench.extractor.log_mel(self.waveforms)}),
            "ours, cached": lambda: self.step({"audio_features": self.stored}),
        }

    def step(self, audio: dict[str, torch.Tensor]) -> None:
        """
        Step as `Trainer` does, with `input_features` `(batch_size, num_frames, num_mel_bins)` or `audio_features`
        `(batch_size, num_audio_tokens, audio_hidden_size)`.
        """
        trainer, device = self.trainer, self.bench.device
        trainer.current_gradient_accumulation_steps = 1
        (batch,), num_items = trainer.get_batch_samples(iter([{**self.batch, **audio}]), 1, device)
        trainer.training_step(self.model, batch, num_items)
        trainer._clip_grad_norm(self.model)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        self.model.zero_grad()

    def reference_step(self) -> None:
        """Take a step as the published code does, in stage 1 our own plain form; with the same optimiser."""
        self.reference_loss().backward()
        clip_grad_norm_(self.weights, self.trainer.args.max_grad_norm)
        self.trainer.optimizer.step()
        self.model.zero_grad()

    def reference_loss(self) -> torch.Tensor:
        """Returns the stage's loss `()`, from the waveforms."""
        features = self.bench.reference_encode(self.waveforms)
        if self.stage > 1:
            return list_net_loss(reference.score(self.bench.model, self.captions, features), self.labels)
        return reference.caption_loss(self.bench.captioner, self.batch["input_ids"], self.batch["labels"], features)

    def caption_batch(self) -> dict[str, torch.Tensor]:
        """Returns sequences `(batch_size, sequence_length)` of stage 1, padded at the end, and their targets."""
        prompt, end = self.bench.processor.audio_and_score_ids[:-1], self.bench.config.end_token_id
        batch = self.bench.processor.pad([[*prompt, *ids, end] for ids in self.captions], self.bench.device)
        targets = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        targets[:, : len(prompt)] = IGNORED
        return {**batch, "labels": targets}
