"""Judges beside our own model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "clap": ["ClapTeacher", "score_pairs"],
        "clap_pipeline": ["ZeroShotAlignmentPipeline"],
        "embeddings": ["EmbeddingShards", "PairIndex", "embed_captions", "embed_clips"],
    },
)
