"""`xacle convert` and `xacle init`: turn published checkpoints and pretrained parts into folders that load."""

from pathlib import Path
from typing import Annotated

import typer

from .. import checkpoints
from .options import Seed

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must be new or empty.")]
Beats = Annotated[
    str | None,
    typer.Option(help="BEATs .pt file or a converted one, for its settings. Default: the published BEATs iter3+ AS2M."),
]


def convert_tmu(
    source: Annotated[
        str, typer.Argument(help="Folder or Hub id with model.pt and config.json, or a .pt or .ckpt file.")
    ],
    output: Output,
    llm: Annotated[
        str | None, typer.Option(help="Language model, folder or Hub id. Default: what config.json names.")
    ] = None,
    beats: Beats = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub id.")] = None,
    audio_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a clip, where no config.json tells. Default: 100, as published."),
    ] = None,
    training_stage: Annotated[
        int | None,
        typer.Option(min=0, max=3, help="Last stage trained, where no config.json tells. Default: 3, as published."),
    ] = None,
) -> None:
    """Convert a checkpoint of the TMU system (Atotti/xacle-tmu-2026). The config.json beside a file is read."""
    checkpoints.convert_tmu(source, output, llm, beats, revision, audio_tokens, training_stage)
    typer.echo(output)


def convert_beats(
    source: Annotated[Path, typer.Argument(help="BEATs .pt file, self-supervised or fine-tuned.")], output: Output
) -> None:
    """Convert a BEATs file (microsoft/unilm)."""
    checkpoints.convert_beats(source, output)
    typer.echo(output)


def init(
    output: Output,
    tower: Annotated[
        str | None,
        typer.Option(
            "--tower",
            "--beats",
            help="What hears: a BEATs .pt file; or folder or Hub id of a converted one, or of another audio encoder of "
            "Transformers (AST, CLAP, PE-AV, Whisper, Qwen2-Audio, Audio Flamingo 3, wav2vec 2.0, WavLM, HuBERT, ...).",
        ),
    ] = None,
    llm: Annotated[str | None, typer.Option(help="Causal language model, folder or Hub id.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Build a judge with two towers instead: baseline-2026, baseline-2027, clap, beats-cross-attention."
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="Text encoder of such a judge, folder or Hub id. Default: that of a CLAP or PE-AV --tower."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Of baseline-2026: dataset whose training split normalises its spectrograms."),
    ] = None,
    seed: Seed = 0,
    caption_likelihood: Annotated[
        bool,
        typer.Option(
            "--caption-likelihood",
            help="Put captions behind the sound, and let the score read how likely stage 1's captioning finds them.",
        ),
    ] = False,
) -> None:
    """Build an untrained model from pretrained parts: the start of stage 1, or with --preset of stages 2 and 3."""
    if (llm is None) == (preset is None) or (preset is None and (text or data)) or (preset and caption_likelihood):
        raise typer.BadParameter("give either --llm, or --preset (with --text, without --caption-likelihood)")
    if preset is not None:
        checkpoints.init_dual(preset, tower, output, text, seed, data)
        typer.echo(output)
        return
    if tower is None:
        raise typer.BadParameter("--tower is missing: name the audio encoder")
    checkpoints.init_model(tower, llm, output, seed=seed, caption_likelihood=caption_likelihood)
    typer.echo(output)
