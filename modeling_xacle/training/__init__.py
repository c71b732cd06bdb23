"""Training: the stages' recipes, losses, batches and trainers, and the files that a run leaves behind."""

from .. import room

__getattr__, __dir__, __all__ = room(
    __name__,
    {
        "collators": ["AudioCollator", "CaptionCollator", "PairCollator", "SpecAugment"],
        "feature_cache": ["AudioFeatureCache"],
        "freezing": ["choose_trained"],
        "listener_targets": ["listener_zscore_targets"],
        "losses": ["balancing_weights", "get_loss", "global_list_loss", "list_net_loss", "ordinal_loss"],
        "recipes": ["StageArguments", "parse_arguments"],
        "resuming": ["train"],
        "run": ["load_splits", "load_start", "make_trainer", "save_result"],
        "trainers": ["CaptionTrainer", "PairTrainer", "StageTrainer"],
    },
)
