"""The rows of the ablation: where each starts, what it is trained on, and how."""

from dataclasses import dataclass, field, replace
from typing import Any

import tiny

# The first seed is the bundled model's. Rows with several seeds are trained with each from stage 2 on; the parts of the
# model, the teacher and its labels, and stage 1 are made once.
SEEDS = (42, 43, 44)


@dataclass(frozen=True)
class Run:
    """
    A training run.

    Args:
        folder (`str`): Its output, below the work folder.
        stage (`str`): A key of `tiny.STAGES`.
        start (`str`): Where it starts, below the work folder.
        settings (`dict`): Settings that differ from the bundled model's.
    """

    folder: str
    stage: str
    start: str
    settings: dict[str, Any] = field(default_factory=dict)

    def with_seed(self, seed: int) -> "Run":
        """Returns the same run with another seed, in its own folder."""
        if seeded(self.folder, seed) == self.folder:
            return self
        settings = {**self.settings, "seed": seed}
        return Run(seeded(self.folder, seed), self.stage, seeded(self.start, seed), settings)

    @property
    def rate(self) -> float:
        """The run's learning rate."""
        return self.settings.get("learning_rate", tiny.STAGES[self.stage]["learning_rate"])

    def with_rate(self, rate: float, **settings: Any) -> "Run":
        """Returns the same run with another learning rate, and perhaps more settings, in its own folder."""
        settings = {**self.settings, "learning_rate": rate, **settings}
        return replace(self, folder=f"rates/{self.folder}-{rate:g}", settings=settings)

    def short(self, rate: float) -> "Run":
        """Returns a run of stage 2 with so many fewer steps, by which its learning rate is chosen."""
        steps = self.settings.get("max_steps", tiny.STAGES[self.stage]["max_steps"]) // SHORTER
        return self.with_rate(rate, max_steps=steps, eval_steps=steps, save_steps=steps)


def seeded(folder: str, seed: int) -> str:
    """Returns the folder of a seed's model; all seeds share stage 1 and what comes before it."""
    return folder if seed == SEEDS[0] or folder.endswith(("stage0", "stage1")) else f"seed{seed}/{folder}"


@dataclass(frozen=True)
class Row:
    """
    A row of the table.

    Args:
        name (`str`): What it is.
        runs (`tuple` of `Run`): Its runs, one after the other; the last is measured.
        seeds (`tuple` of `int`): The seeds it is trained with.
        rates (`dict`): By stage, the learning rates to try on development data, of which its own is the best; a row
            without any has those of the row that it varies.
    """

    name: str
    runs: tuple[Run, ...]
    seeds: tuple[int, ...] = SEEDS[:1]
    rates: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def folders(self) -> list[str]:
        """The folders of the measured models, one for each seed."""
        return [self.runs[-1].with_seed(seed).folder for seed in self.seeds]


# The published system's sequence (caption, sound, [SCORE]), from the same stage 1: in captioning, the sound comes first
# in either form.
PUBLISHED_LABELS = "data/clap_published"
PUBLISHED_FORM = ("published/", "before/")  # folders of models in that sequence; they read no likelihood
# As in the released code: ListNet at temperature 1 over the 16 pairs of one process, a frozen language model, three
# random negatives per caption, and SpecAugment that never runs. Rates and lengths are ours: the released ones suit
# another size.
AS_RELEASED = {
    "train": "projector score_head",
    "loss": "listnet",
    "temperature": 1.0,
    "one_sided": True,
    "list_scope": "local",
    "per_device_train_batch_size": 16,
    "caption_weight": 0.0,
}
STAGE2_AS_RELEASED = AS_RELEASED | {
    "data": PUBLISHED_LABELS,
    "max_steps": 20_000,  # as many pairs as ours sees
    "eval_steps": 10_000,
    "save_steps": 10_000,
}
# The paper's masks of 15 of 128 mel bins and 30 frames, at 32 mel bins.
SPEC_AUGMENT = {"mask_mel_bins": 4, "mask_frames": 30, "augmented_views": 4}
# Learning rates of stage 2 are chosen by runs of a quarter of its steps.
SHORTER = 4
# Models that start from little train longer in stage 3.
LONGER = {"num_train_epochs": 8}
# Rows without stage 1 do not learn captioning in stage 2 either.
NO_CAPTIONING = {"caption_weight": 0.0}

RELEASED_RATE = 1e-4
RATES = {"stage2": (3e-4, 1e-3, 3e-3), "stage3": (3e-5, 1e-4, 3e-4)}

RELEASED = "as released"
PAPER = "as in the paper: with SpecAugment"
OURS = "ours: stages 1 + 2 + 3"
STAGE1, STAGE2, STAGE3 = (Run(name, name, start) for name, start in tiny.STARTS.items())
RELEASED2 = Run("published/stage2", "stage2", "published/stage1", STAGE2_AS_RELEASED)


def released3(folder: str, start: str, **settings: Any) -> Run:
    """Returns stage 3 as released, except for some settings."""
    return Run(folder, "stage3", start, AS_RELEASED | {"learning_rate": RELEASED_RATE} | settings)


def variant(name: str, **settings: Any) -> tuple[Run, ...]:
    """Returns our runs, except for some settings of stage 3."""
    return (STAGE1, STAGE2, Run(f"variants/{name}", "stage3", "stage2", settings))


ROWS = (
    Row(
        "stage 3 only, as released",
        (released3("published/only3", "published/stage0", learning_rate=3e-4, **LONGER),),
        rates={"stage3": (1e-4, 3e-4, 1e-3)},
    ),
    Row(RELEASED, (STAGE1, RELEASED2, released3("published/stage3", "published/stage2")), SEEDS, RATES),
    Row(PAPER, (STAGE1, RELEASED2, released3("published/paper3", "published/stage2", **SPEC_AUGMENT))),
    Row(
        "ours: stage 3 only",
        (Run("only3", "stage3", "stage0", {"learning_rate": 1e-3, **LONGER}),),
        rates={"stage3": (3e-4, 1e-3, 3e-3)},
    ),
    Row(
        "ours: stages 2 + 3, no captioning",
        (Run("from0_stage2", "stage2", "stage0", NO_CAPTIONING), Run("from0_stage3", "stage3", "from0_stage2")),
    ),
    Row("ours: stages 1 + 3", (STAGE1, Run("from1_stage3", "stage3", "stage1"))),
    Row(OURS, (STAGE1, STAGE2, STAGE3), SEEDS, RATES),
    Row(
        "ours, caption before the sound (no likelihood, no captioning)",
        (
            STAGE1,
            Run("before/stage2", "stage2", "published/stage1", NO_CAPTIONING),
            Run("before/stage3", "stage3", "before/stage2"),
        ),
    ),
    Row("ours with ListNet, temperature 1, in stage 3", variant("listnet", loss="listnet", temperature=1.0)),
    Row("ours with MSE in stage 3", variant("mse", loss="mse")),
    Row("ours with clipped MSE + contrastive in stage 3", variant("clipped", loss="clipped_contrastive")),
)


def choices(row: Row) -> dict[str, dict[float, tuple[Run, ...]]]:
    """Returns, by stage and learning rate, the runs that end with the model by which that rate was judged."""
    tried: dict[str, dict[float, tuple[Run, ...]]] = {}
    for place, run in enumerate(row.runs):
        for rate in row.rates.get(run.stage, ()):
            last = run.short(rate) if run.stage == "stage2" else run if rate == run.rate else run.with_rate(rate)
            tried.setdefault(run.stage, {})[rate] = (*row.runs[:place], last)
    return tried
