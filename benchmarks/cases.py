"""The cases of each section of the benchmark: what is timed, and which matrix products it is made of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import reference
import torch
from operations import Product, encoder_products, pair_products, score_products, step_products
from training_steps import TrainingSteps
from workbench import LORA_RANK, Workbench

BATCHES = (1, 8, 32)
CAPTIONS = (1, 4, 16)
STEP_PAIRS = 8


@dataclass
class Case:
    """
    Something to measure.

    Args:
        name (`str`): What the table calls it.
        items (`int`): Clips, pairs or captions of one call, by which its time is divided.
        rivals (`dict`): What to call: the `reference` where there is one, and our form, or forms of several names.
        products (`dict`): What each of our forms has to compute, where that is counted.
    """

    name: str
    items: int
    rivals: dict[str, Callable[[], Any]]
    products: dict[str, list[Product]] = field(default_factory=dict)


def front_end(bench: Workbench) -> Iterator[Case]:
    """Waveforms to spectrograms."""
    for clips in BATCHES:
        waveforms = bench.waveforms(clips)
        rivals = {
            "ours": lambda x=waveforms: bench.extractor.log_mel(x),
            "reference": lambda x=waveforms: reference.log_mel(bench.extractor, x),
        }
        yield Case(f"front end, {clips} clips", clips, rivals)


def encoder(bench: Workbench) -> Iterator[Case]:
    """Spectrograms to audio features."""
    for clips in BATCHES:
        spectrograms = bench.extractor.log_mel(bench.waveforms(clips))
        rivals = {
            "ours": lambda x=spectrograms: bench.encode(x),
            "reference": lambda x=spectrograms: reference.audio_features(bench.model, x),
        }
        products = encoder_products(bench.config, clips, spectrograms.shape[1])
        yield Case(f"encoder, {clips} clips", clips, rivals, {"ours": products})


def language_model(bench: Workbench) -> Iterator[Case]:
    """Audio features to scores."""
    for pairs in BATCHES:
        features = torch.randn(
            pairs, bench.config.num_audio_tokens, bench.config.audio_config.hidden_size, device=bench.device
        )
        captions = bench.captions(pairs)
        rivals = {
            "ours": lambda x=features, y=captions: bench.logits(y, x),
            "reference": lambda x=features, y=captions: bench.reference_logits(y, x),
        }
        products = score_products(bench.config, bench.lengths(pairs))
        yield Case(f"projector + language model, {pairs} pairs", pairs, rivals, {"ours": products})


def pair_case(bench: Workbench, name: str, pairs: int, share: int, pass_size: int) -> Case:
    """Waveforms to scores of so many pairs, of which `share` have a clip in common."""
    waveforms, captions = bench.waveforms(pairs // share), bench.captions(pairs)
    rivals = {
        "ours": lambda: bench.scores(waveforms, captions, pass_size),
        "reference": lambda: bench.reference_scores(waveforms, captions, pass_size),
    }
    products = pair_products(bench.config, bench.lengths(pairs), share, bench.num_frames)
    return Case(name, pairs, rivals, {"ours": products})


def pair(bench: Workbench) -> Iterator[Case]:
    """Waveforms to scores, one caption a clip."""
    for pairs in BATCHES:
        yield pair_case(bench, f"whole pair, {pairs} pairs", pairs, 1, pairs)


def captions(bench: Workbench) -> Iterator[Case]:
    """Waveforms to scores, several captions a clip, in passes of eight pairs."""
    for share in CAPTIONS:
        pairs = max(8, share)
        yield pair_case(bench, f"{share} captions a clip, {pairs} captions", pairs, share, 8)


def training(bench: Workbench) -> Iterator[Case]:
    """Waveforms, or stored features, to the step of the optimiser."""
    lengths, frames = bench.lengths(STEP_PAIRS), bench.num_frames
    for stage in (1, 2, 3):
        for rank in (0, LORA_RANK):
            with bench.stage(stage, rank) as model:
                rivals = TrainingSteps(bench, model, stage, STEP_PAIRS).forms()
                if rank:  # the published code has none
                    del rivals["reference"]
                products = {
                    form: step_products(bench.config, stage, lengths, form != "ours", rank, frames)
                    for form in rivals
                    if form != "reference"
                }
                name = f"stage {stage}{', LoRA' if rank else ''}, step of {STEP_PAIRS}"
                yield Case(name, STEP_PAIRS, rivals, products)


def loading(bench: Workbench) -> Iterator[Case]:
    """Files to a model that is ready."""
    yield Case("loading", 1, bench.loading())


SECTIONS: dict[str, Callable[[Workbench], Iterator[Case]]] = {
    "front_end": front_end,
    "encoder": encoder,
    "language_model": language_model,
    "pair": pair,
    "captions": captions,
    "training": training,
    "loading": loading,
}
