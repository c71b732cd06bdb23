"""Loads models that a user names. Code that comes with them never runs; what is wrong is told in one sentence."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file, logging

logger = logging.get_logger(__name__)

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
CONFIG_FILE = "config.json"
# How files begin that are not what their names say.
BEGINNINGS = {
    b"version https://git-lfs": "is a Git LFS pointer: run `git lfs pull` in the folder",
    b"<": "is a web page: download the file itself",
}
NAMES_LISTED = 5
MOST_LAYERS, LARGEST_NUMBER = 1000, 2**40


def load_part(part_class: Any, name: str | Path, revision: str | None = None, **options: Any) -> Any:
    """
    Calls `from_pretrained` of a configuration, processor or tokenizer class.

    Args:
        part_class (`type`): A class of Transformers or of this package; an `Auto` class too.
        name (`str` or `Path`): Folder or Hub id.
        revision (`str`, *optional*): Revision of a Hub id.
        options: Further arguments.

    Raises:
        ValueError: It cannot be loaded; the message names it and says why.
    """
    folder = Path(name)
    if folder.is_file():
        raise ValueError(f"{name}: is a file; name the model's folder.")
    if folder.is_dir() and not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{name}: holds no {CONFIG_FILE}, so it is not a model's folder.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, about a pickle that is refused
            part = part_class.from_pretrained(str(name), revision=revision, trust_remote_code=False, **options)
    except Exception as error:  # Transformers and its libraries raise any kind for a broken file
        logger.info(f"{name} cannot be loaded.", exc_info=True)
        own = str(error).startswith(str(name))  # said by this package, which names it
        raise ValueError(str(error) if own else f"{name}: {_reason(folder, revision, error)}") from error
    if isinstance(part, PreTrainedConfig):
        check_sizes(name, part.to_dict())
    return part


def check_sizes(name: str | Path, settings: Mapping[str, Any]) -> None:
    """
    Refuses a configuration that would take all memory, or hours to build.

    Raises:
        ValueError: A number is beyond any model's; the message names the model and the setting.
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            check_sizes(name, value)
        largest = MOST_LAYERS if key == "num_hidden_layers" else LARGEST_NUMBER
        if isinstance(value, (int, float)) and abs(value) > largest:
            raise ValueError(f"{name}: its {CONFIG_FILE} says {key} = {value:.6g}, which no model has.")


def load_model(model_class: Any, name: str | Path, revision: str | None = None, **options: Any) -> PreTrainedModel:
    """
    Loads a model with all its weights; arguments as for [`load_part`].

    Raises:
        ValueError: It cannot be loaded, or weights are missing or of another shape.
    """
    for file in sorted(Path(name).glob("*.safetensors")) if Path(name).is_dir() else ():
        check_weights(file)
    model, info = load_part(model_class, name, revision, output_loading_info=True, **options)
    missing = sorted(set(info["missing_keys"]) & {parameter for parameter, _ in model.named_parameters()})
    missing += sorted(str(found[0]) for found in info["mismatched_keys"])
    if missing:
        raise ValueError(
            f"{name}: {len(missing)} weights are missing or of another shape and would be random "
            f"({', '.join(missing[:NAMES_LISTED])}{', ...' if len(missing) > NAMES_LISTED else ''})."
        )
    return model


def find_file(name: str | Path, file: str, revision: str | None = None, **options: Any) -> str | None:
    """Returns the path of a file of a folder or of a model on the Hub; `None` if the model does not have it."""
    quietly: dict[str, Any] = dict.fromkeys(
        ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors"), False
    )
    return cached_file(str(name), file, revision=revision, **quietly, **options)


def _is_known(name: str, revision: str | None) -> bool:
    """Returns True if the configuration of a model on the Hub is on this machine, as it is after any try to load it."""
    try:
        return find_file(name, CONFIG_FILE, revision, local_files_only=True) is not None
    except OSError:  # no such repository or revision
        return False


def check_weights(file: Path) -> None:
    """
    Looks at the header of a file of weights.

    Raises:
        ValueError: The file is empty, cut short, or something else.
    """
    try:
        with safe_open(file, framework="pt"):
            return
    except (SafetensorError, OSError) as error:
        with open(file, "rb") as content:
            start = content.read(64).lstrip()
        known = (said for beginning, said in BEGINNINGS.items() if start.startswith(beginning))
        said = next(known, "is cut short or broken: download it again" if start else "is empty: download it again")
        raise ValueError(f"{file}: {said}.") from error


def _reason(folder: Path, revision: str | None, error: Exception) -> str:
    """Says why a model cannot be loaded."""
    if "trust_remote_code" in str(error):
        return "cannot be loaded: the model comes with code of its own, which is not run here."
    if not folder.exists() and not HUB_ID.fullmatch(str(folder)):
        return "there is no such folder."
    if not folder.exists() and not _is_known(str(folder), revision):
        of_revision = f" and revision {revision}" if revision else ""
        return f"there is no such folder, and no model of this name{of_revision} could be had from the Hub."
    return (
        f"cannot be loaded: files are missing or broken, or do not fit together ({type(error).__name__}; with "
        "TRANSFORMERS_VERBOSITY=info in the environment, all of it is told)."
    )
