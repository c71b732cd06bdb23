"""What is disturbed. To add a task: an entry here."""

from typing import NamedTuple

from modeling_xacle import DEFAULT_MODEL

CLIPS = "clips/*.wav"


class Task(NamedTuple):
    """
    A command, given in a folder with the inputs of `materials.py`, which writes below `out` alone.

    Fields:
        command (`list[str]`): `xacle` or a script, and its arguments.
        whole (`tuple[str, ...]`): Results, files or folders, that are either complete or not there (or as an earlier
            command left them), whenever one looks.
        reads (`str`): Pattern of the inputs of which one may shrink.
        varies (`tuple[str, ...]`): Patterns of files in `out` whose bytes hold times.
        earlier (`list[str]`): A command that is given first, undisturbed.
        uploads (`bool`): Whether what is on the Hub belongs to the result; its names begin with `hub/`.
        processes (`int`): How many share the work; more than one are disturbed by the loss of one alone.
    """

    command: list[str]
    whole: tuple[str, ...] = ()
    reads: str = CLIPS
    varies: tuple[str, ...] = ()
    earlier: list[str] = []
    uploads: bool = False
    processes: int = 1


SCORE = ["xacle", "score", "clips/pairs.csv", "-o", "out/o.csv", "--device", "cpu"]
PREPARE = ["dataset_scripts/prepare_aac.py", "-o", "out/aac", "--embed-audio", "--table"]
LABEL = ["dataset_scripts/label_pairs.py", "dataset", "--teacher", "teacher", "--shard-size", "3"]
LABEL += ["-o", "out/labelled"]
ENSEMBLE = ["xacle", "ensemble", "a.csv", "b.csv", "-o", "out/e.csv", "--resamples", "20"]
FITTED = ["--reference", "listeners.csv", "--method", "nnls", "--save-weights", "out/weights.json"]
STEPS = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "4"]
STEPS += ["--save_strategy", "steps", "--save_steps", "1", "--eval_strategy", "steps", "--eval_steps", "1"]
STEPS += ["--data", "dataset", "--report_to", "none", "--use_cpu", "true", "--output_dir", "out/run"]
CACHE = ["--cache_audio_features", "true", "--cache_dir", "out/cache", "--mask_mel_bins", "0"]
CACHE += ["--mask_frames", "0"]


def stage(number: int) -> list[str]:
    """The command of a stage, of two steps."""
    return ["run_stage.py", "--stage", str(number), "--model", DEFAULT_MODEL, *STEPS]


RECORDS = ("o.csv.records.jsonl",)  # hold the times of clips
TRAINING = ("run/checkpoint-*/*", "run/training_log.json", "run/README.md", "run/*.png")

TASKS = {
    "scoring": Task(SCORE, ("o.csv",), varies=RECORDS),
    "scoring by two": Task(SCORE, ("o.csv",), varies=RECORDS, processes=2),
    "scoring anew": Task(
        [*SCORE, "--restart"], ("o.csv",), varies=RECORDS, earlier=[*SCORE, "--window-seconds", "1", "--signature"]
    ),
    "preparing": Task([*PREPARE, "clips/train.csv"], ("aac/",)),
    "preparing anew": Task([*PREPARE, "clips/train.csv"], ("aac/",), earlier=[*PREPARE, "train=clips/old.csv"]),
    "labelling": Task(LABEL, ("labelled/",)),
    "labelling by two": Task(LABEL, ("labelled/",), processes=2),
    "ensemble": Task([*ENSEMBLE, *FITTED], ("e.csv", "weights.json"), reads="[ab].csv"),
    "ensemble anew": Task([*ENSEMBLE, *FITTED], ("e.csv", "weights.json"), reads="[ab].csv", earlier=ENSEMBLE),
    "stage 1": Task(stage(1), varies=TRAINING),
    "stage 2": Task(stage(2), varies=TRAINING),
    "stage 3": Task(stage(3), varies=TRAINING),
    "stage 3 by two": Task([*stage(3), "--ddp_backend", "gloo"], varies=TRAINING, processes=2),
    "cache": Task([*stage(3), *CACHE], varies=TRAINING),
    "upload": Task(
        [*stage(3), "--push_to_hub", "true", "--hub_model_id", "user/trained"],
        ("run/", "hub/"),
        earlier=stage(3),
        uploads=True,
    ),
}
