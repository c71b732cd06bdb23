"""
Put the trained model into the package, with its results on a test world on its card.

    python benchmarks/ablation/install.py runs/tiny --test-seed 1f2e3d4c

takes runs/tiny/stage3, which tiny.py makes, without the code, which the package has. Every pair's score goes to
benchmarks/results/worlds/ and replaces the previous model's.
"""

import shutil
from pathlib import Path
from typing import Annotated

import typer
import worlds

from modeling_xacle.cli.endings import plain_endings
from modeling_xacle.data.tables import write_table
from modeling_xacle.scoring.diagnostics import BUNDLED_MODEL, write_expected

SCORES = Path(__file__).parents[1] / "results/worlds"
INSTALLED = (
    "config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_curves.png",
)
WARNING = """
> The model that `pipeline("audio-text-alignment")` loads when none is named. **Everything it learned is synthetic**:
> sounds, captions and listeners come from a program (`dataset_scripts/synthetic/synthesize.py`). It is for trying the
> package out and for its tests, not for judging real generators: what it says of a real recording means nothing. Made
> by `python benchmarks/ablation/tiny.py`.
"""
TEST = """## Test

On the synthetic world of seed `{seed:08x}`, drawn after the recipe was frozen (docs/evidence.md), and on what another
generator makes of it: other sounds, other words, unseen kinds of sound, and all three. "Of the ceiling" is the SRCC
with the mean of four simulated listeners, over that of the true alignment.

{table}

## Intended use"""
# Text that the run's own card cannot have.
REWORDED = {
    "---\nlanguage:": "---\nlicense: mit\nlanguage:",
    "- name: stage3\n": "- name: xacle-tiny\n",
    "# stage3\n": f"# xacle-tiny\n{WARNING}",
    "from transformers import pipeline\n": "import modeling_xacle\nfrom transformers import pipeline\n",
    'pipeline("audio-text-alignment", model="stage3", trust_remote_code=True)': 'pipeline("audio-text-alignment")',
    "`trust_remote_code` runs the code in this folder; where `modeling_xacle` is installed and imported, "
    "leave it out.": "The folder carries no code: it uses the package's.",
    "| unknown |": "| MIT: made by this project's scripts |",
}


def make_card(text: str, seed: int, table: str) -> str:
    """
    Add to a run's card what the run itself cannot know.

    Raises:
        ValueError: The card's text is not as expected.
    """
    for old, new in {**REWORDED, "## Intended use": TEST.format(seed=seed, table=table)}.items():
        if old not in text:
            raise ValueError(f"The card of the trained model has no {old!r}: it is worded otherwise than expected.")
        text = text.replace(old, new)
    return text


def install(model: Path, folder: Path, seed: int, table: str) -> None:
    """Put a trained model into a folder, with the scores that it must give."""
    card = make_card((model / "README.md").read_text(encoding="utf-8"), seed, table)
    for name in INSTALLED:
        shutil.copy(model / name, folder / name)
    (folder / "README.md").write_text(card, encoding="utf-8")
    write_expected(folder)


def main(
    test_seed: Annotated[str, typer.Option(help="Of the test world, in hexadecimal digits.")],
    work: Annotated[Path, typer.Argument(help="Folder of benchmarks/ablation/tiny.py.")] = Path("runs/tiny"),
) -> None:
    """Make the result of benchmarks/ablation/tiny.py the bundled model."""
    work, seed = work.absolute(), worlds.read_seed(test_seed)
    rows = worlds.score_world(work / "stage3", worlds.draw(work, seed), work / "cache")
    install(work / "stage3", BUNDLED_MODEL, seed, worlds.world_table(rows))
    for earlier in SCORES.glob("*.csv"):
        earlier.unlink()
    write_table(SCORES / f"{seed:08x}.csv", rows)
    typer.echo(BUNDLED_MODEL)


if __name__ == "__main__":
    with plain_endings():
        typer.run(main)
