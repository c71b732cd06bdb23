"""
Train one stage of the alignment model: 1 captioning, 2 CLAP pseudo-labels, 3 listeners' scores.

    accelerate launch run_stage.py --stage 3
    accelerate launch --config_file accelerate_configs/multi_gpu.yaml run_stage.py --stage 2 --cache_audio_features true
    python run_stage.py --config my_stage.yaml --learning_rate 1e-4

Each stage starts from the folder of the one before (runs/stage0 is what `xacle init` built), reads its default dataset
(data/aac, data/clap_pseudo, data/xacle), follows the published recipe (arXiv 2602.00604) unless told otherwise, and
ends in runs/stage<N>, which `pipeline("audio-text-alignment")` loads. A run that was interrupted goes on from its last
checkpoint when the same command is given again; with other data, another start or other settings it is refused.
`--help` lists all settings; any of `transformers.TrainingArguments` is one.
"""

from pathlib import Path

import typer
from transformers import set_seed

from modeling_xacle.cli.endings import plain_endings
from modeling_xacle.data.files import check_outputs, held
from modeling_xacle.speed import fast_forms
from modeling_xacle.training.cards import write_report
from modeling_xacle.training.freezing import choose_trained
from modeling_xacle.training.progress import log_to_stderr
from modeling_xacle.training.recipes import parse_arguments
from modeling_xacle.training.resuming import find_run, mark_finished, total_batch_size, train
from modeling_xacle.training.run import (
    check_lists,
    check_processes,
    load_splits,
    load_start,
    make_trainer,
    push,
    save_result,
    tell_stop,
    validate,
)


def main(arguments: list[str] | None = None) -> None:
    """Arguments, data, model, trainer; train, evaluate, save."""
    stage, args = parse_arguments(arguments)
    check_processes(stage, args)
    check_outputs([args.output_dir], [stage.data, stage.model])
    splits = load_splits(stage, total_batch_size(args))
    check_lists(stage, args, len(splits[0]))
    model, processor = load_start(stage)
    with held(args.output_dir, args.process_index == 0):
        run = find_run(stage, args, model, processor, splits)
        if not run.is_finished:
            set_seed(args.seed)
            trainer = make_trainer(stage, args, choose_trained(model, stage), processor, *splits)
            with fast_forms(trainer.model):
                train(trainer, run.checkpoint)
                validation = validate(trainer, stage)
            save_result(trainer, stage)
            summary = write_report(trainer, stage, *validation)
            mark_finished(args)
            if summary:
                typer.echo(summary)
        if args.push_to_hub:
            push(stage, args)


if __name__ == "__main__":
    log_to_stderr()
    with plain_endings(stopped=lambda: tell_stop(Path(parse_arguments()[1].output_dir))):
        main()
