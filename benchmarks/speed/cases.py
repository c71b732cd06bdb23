"""The cases of each section of the benchmark: what is timed, and which matrix products it is made of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import reference
import torch
from machines import describe, has_bf16
from operations import Product, encoder_products, pair_products, score_products, step_products
from training_steps import TrainingSteps
from workbench import LORA_RANK, Workbench

BATCHES = (1, 8, 32)
CAPTIONS = (1, 4, 16)
STEP_PAIRS = 8

# What our forms are compared with. Stage 1 of the published system was never released.
PUBLISHED, OWN_PLAIN, OWN_FP32 = "published design", "our own plain form", "ours in fp32"


@dataclass
class Case:
    """
    Something to measure.

    Args:
        name (`str`): What the table calls it.
        items (`int`): Clips, pairs or captions in one call, by which its time is divided.
        ours (`dict`): The calls to time, by name: `ours`, or several forms.
        reference (`Callable`, *optional*): The call they are compared with.
        beside (`str`): What that is: `PUBLISHED`, `OWN_PLAIN` or `OWN_FP32`.
        products (`dict`): What each of our forms has to compute, if that is counted.
        calls (`int`): Calls in a turn, of which only the last is timed.
    """

    name: str
    items: int
    ours: dict[str, Callable[[], Any]]
    reference: Callable[[], Any] | None = None
    beside: str = PUBLISHED
    products: dict[str, list[Product]] = field(default_factory=dict)
    calls: int = 1


def front_end(bench: Workbench) -> Iterator[Case]:
    """Cases from waveforms to spectrograms."""
    for clips in BATCHES:
        waveforms = bench.waveforms(clips)
        yield Case(
            f"front end, {clips} clips",
            clips,
            {"ours": partial(bench.extractor.log_mel, waveforms)},
            partial(reference.log_mel, bench.extractor, waveforms),
        )


def encoder(bench: Workbench) -> Iterator[Case]:
    """Cases from spectrograms to audio features."""
    for clips in BATCHES:
        spectrograms = bench.extractor.log_mel(bench.waveforms(clips))
        yield Case(
            f"encoder, {clips} clips",
            clips,
            {"ours": partial(bench.encode, spectrograms)},
            partial(reference.audio_features, bench.model, spectrograms),
            products={"ours": encoder_products(bench.config, clips, spectrograms.shape[1])},
        )


def language_model(bench: Workbench) -> Iterator[Case]:
    """Cases from audio features to scores."""
    config = bench.config
    for pairs in BATCHES:
        captions = bench.captions(pairs)
        features = torch.randn(pairs, config.num_audio_tokens, config.audio_config.hidden_size, device=bench.device)
        yield Case(
            f"projector + language model, {pairs} pairs",
            pairs,
            {"ours": partial(bench.logits, captions, features)},
            partial(bench.reference_logits, captions, features),
            products={"ours": score_products(config, bench.lengths(pairs))},
        )


def pair_case(bench: Workbench, name: str, pairs: int, share: int, pass_size: int) -> Case:
    """Returns a case from waveforms to the scores of `pairs` pairs, of which `share` at a time have the same clip."""
    inputs = bench.waveforms(pairs // share), bench.captions(pairs), pass_size
    return Case(
        name,
        pairs,
        {"ours": partial(bench.scores, *inputs)},
        partial(bench.reference_scores, *inputs),
        products={"ours": pair_products(bench.config, bench.lengths(pairs), share, bench.num_frames)},
    )


def pair(bench: Workbench) -> Iterator[Case]:
    """Cases from waveforms to scores, one caption per clip."""
    for pairs in BATCHES:
        yield pair_case(bench, f"whole pair, {pairs} pairs", pairs, 1, pairs)


def captions(bench: Workbench) -> Iterator[Case]:
    """Cases from waveforms to scores, several captions per clip, in passes of eight pairs."""
    for share in CAPTIONS:
        pairs = max(8, share)
        yield pair_case(bench, f"{share} captions a clip, {pairs} captions", pairs, share, 8)


def bf16(bench: Workbench) -> Iterator[Case]:
    """A case from waveforms to scores with a model loaded in bf16, if the processor has instructions for it."""
    if bench.dtype == torch.float32 and has_bf16(describe(bench.device)):
        inputs = bench.waveforms(STEP_PAIRS), bench.captions(STEP_PAIRS), STEP_PAIRS
        rivals = {name: partial(bench.scores, *inputs, dtype=getattr(torch, name)) for name in ("bfloat16", "float32")}
        name = f"whole pair in bf16, {STEP_PAIRS} pairs"
        yield Case(name, STEP_PAIRS, {"ours": rivals["bfloat16"]}, rivals["float32"], OWN_FP32)


def training(bench: Workbench) -> Iterator[Case]:
    """Cases from waveforms, or stored features, to the optimiser's step."""
    lengths, frames = bench.lengths(STEP_PAIRS), bench.num_frames
    for stage in (1, 2, 3):
        for rank in (0, LORA_RANK):
            with bench.stage(stage, rank) as model:
                steps = TrainingSteps(bench, model, stage, STEP_PAIRS)
                yield Case(
                    f"stage {stage}{', LoRA' if rank else ''}, step of {STEP_PAIRS}",
                    STEP_PAIRS,
                    steps.forms(),
                    None if rank else steps.reference_step,  # the published code has no adapters
                    OWN_PLAIN if stage == 1 else PUBLISHED,
                    {
                        form: step_products(bench.config, stage, lengths, form != "ours", rank, frames)
                        for form in steps.forms()
                    },
                    calls=2,
                )


def loading(bench: Workbench) -> Iterator[Case]:
    """A case from files to a loaded model; the published code loads pretrained parts and a pickle of all weights."""
    ours, plain = bench.loading()
    yield Case("loading", 1, {"ours": ours}, plain)


SECTIONS: dict[str, Callable[[Workbench], Iterator[Case]]] = {
    "front_end": front_end,
    "encoder": encoder,
    "language_model": language_model,
    "pair": pair,
    "captions": captions,
    "bf16": bf16,
    "training": training,
    "loading": loading,
}
