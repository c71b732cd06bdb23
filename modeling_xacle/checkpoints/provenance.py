"""Where a model's parts come from and under which licence, as far as its config and its card say."""

import re
from pathlib import Path

import yaml
from huggingface_hub import DatasetCard, ModelCard, ModelCardData
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from ..configuration_xacle import BeatsConfig, ScoringConfig, XacleConfig
from .loading import find_file

CARD = "README.md"
UNKNOWN = "unknown"
UNNAMED = "a dataset without a name"
TMU_SOURCE, TMU_LICENCE = "Atotti/xacle-tmu-2026", "cc-by-nc-4.0"
TMU_TEMPLATE = Path(__file__).parent / "templates/tmu_card.md.jinja"
# Start of a source's name, without its folder and in lower case -> its licence, under the Hub's name.
LICENCES = {
    r"beats_iter\d": "mit",
    r"xacle-tmu-2026": TMU_LICENCE,
    r"qwen2(\.5)?-(0\.5b|1\.5b)": "apache-2.0",
    r"qwen3-": "apache-2.0",
    r"smollm": "apache-2.0",
}


def licence_of(source: str) -> str:
    """Returns the licence of a source known by its name, otherwise `unknown`."""
    name = source.rsplit("/", 1)[-1].lower()
    return next((licence for pattern, licence in LICENCES.items() if re.match(pattern, name)), UNKNOWN)


def parts_in_words(config: ScoringConfig) -> str:
    """Says what a model consists of: "BEATs encoder, SwiGLU projector, qwen2 decoder"."""
    audio, text = config.audio_config.model_type, config.text_config.model_type
    audio = "BEATs" if audio == BeatsConfig.model_type else audio
    if isinstance(config, XacleConfig):
        return f"{audio} encoder, SwiGLU projector, {text} decoder"
    return f"{audio} and {text} towers, joined by {config.join}"


def made_from(config: ScoringConfig) -> list[dict[str, str]]:
    """Lists the pretrained parts that a model was built from: `part`, `source` and `licence`, or `unknown`."""
    found, text = [], "language model" if isinstance(config, XacleConfig) else "text encoder"
    for part, settings in (("audio encoder", config.audio_config), (text, config.text_config)):
        source = settings._name_or_path or UNKNOWN
        found.append({"part": part, "source": source, "licence": licence_of(source)})
    return found


def commit_of(model: str | Path, revision: str | None = None) -> str | None:
    """Returns the commit, 40 hex digits, that a model's revision on the Hub is loaded from; `None` for a folder."""
    return extract_commit_hash(cached_file(str(model), "config.json", revision=revision), None)


def read_card(model: str | Path, revision: str | None = None) -> ModelCardData | None:
    """
    Returns the metadata of a model's card; `None` if there is no card.

    Args:
        model (`str` or `Path`): Folder or Hub id.
        revision (`str`, *optional*): Revision of a Hub id.

    Raises:
        ValueError: The card's metadata is broken.
    """
    path = find_file(model, CARD, revision)
    try:
        return ModelCard.load(path).data if path else None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(f"{model}: the metadata of its {CARD} is broken ({type(error).__name__}); mend it.") from error


def dataset_name(name_or_path: str | Path) -> str:
    """
    Returns a dataset's name: `pretty_name` in its card's metadata, or else the card's title; on the Hub, its id. A
    folder's name does not count, as it says nothing about the content.
    """
    folder = Path(name_or_path)
    if not folder.exists():
        return str(name_or_path)
    if not (folder / CARD).is_file():
        return UNNAMED
    card = DatasetCard.load(folder / CARD)
    title = re.search(r"^# (.+)$", card.text, re.MULTILINE)
    return card.data.pretty_name or (title[1].strip() if title else UNNAMED)


def write_tmu_card(folder: Path, source: str | Path) -> None:
    """Write the card of a converted checkpoint of the published system, whose licence applies to it."""
    metadata = ModelCardData(
        language="en",
        license=TMU_LICENCE,
        library_name="transformers",
        pipeline_tag="audio-text-alignment",
        base_model=TMU_SOURCE,
        tags=["xacle", "audio", "audio-text-alignment", "arxiv:2602.00604"],
    )
    source = Path(source).name if Path(source).exists() else source
    card = ModelCard.from_template(metadata, template_path=str(TMU_TEMPLATE), name=folder.name, source=source)
    card.save(folder / CARD)
