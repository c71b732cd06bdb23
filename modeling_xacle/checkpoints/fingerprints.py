"""Digests of what a result depends on: a model, its processor, the audio front end, the rows of a dataset."""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..data.files import file_digest
from ..feature_extraction_xacle import FRONT_END_VERSION
from ..waveforms_xacle import audio_engine

# Settings that say where a part comes from, what code wrote it or what it was trained for, but not what it computes.
BOOKKEEPING = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "custom_pipelines",
    "dtype",
    "processor_class",
    "training_stage",
    "transformers_version",
}
ROWS_AT_A_TIME = 100  # some 30 MB of embedded sounds


def digest_of(content: Any) -> str:
    """Returns the SHA-256 of JSON content, in hexadecimal digits; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def without_bookkeeping(settings: Any) -> Any:
    """Returns only the settings that change what is computed, at any depth."""
    if isinstance(settings, Mapping):
        return {name: without_bookkeeping(value) for name, value in settings.items() if name not in BOOKKEEPING}
    return settings


def hash_weights(digest: Any, module: torch.nn.Module) -> None:
    """
    Feed all weights and buffers of a module to a digest of `hashlib`: their names, types, shapes and numbers. Tied
    weights count once.
    """
    tied = getattr(module, "all_tied_weights_keys", {})
    for name, tensor in sorted((name, tensor) for name, tensor in module.state_dict().items() if name not in tied):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def weights_fingerprint(module: torch.nn.Module) -> str:
    """Returns the SHA-256 of all weights and buffers of a module."""
    digest = hashlib.sha256()
    hash_weights(digest, module)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the SHA-256 of what decides a text's tokens: vocabulary, rules and the token that ends a text."""
    if hasattr(tokenizer, "backend_tokenizer"):
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        content = {name: value for name, value in rules.items() if name not in ("padding", "truncation")}  # per call
    else:
        with TemporaryDirectory() as folder:
            files = [Path(file) for file in tokenizer.save_vocabulary(folder)]
            content = {file.name: file_digest(file) for file in files}
        content["vocabulary"] = tokenizer.get_vocab()
    return digest_of([type(tokenizer).__name__, tokenizer.eos_token_id, content])


def processor_settings(processor: ProcessorMixin) -> dict[str, Any]:
    """Returns a processor's settings, as JSON has them: its own, `feature_extractor` and the digest of `tokenizer`."""
    settings = without_bookkeeping(processor.to_dict())
    return {**settings, "tokenizer": f"sha256 {tokenizer_fingerprint(processor.tokenizer)}"}


def front_end_code() -> dict[str, Any]:
    """Says which code and library turn a sound into a spectrogram, which no setting does."""
    return {"front_end_version": FRONT_END_VERSION, "audio_engine": audio_engine()}


def model_fingerprint(model: PreTrainedModel, processor: ProcessorMixin) -> str:
    """Returns the SHA-256 of a model's weights, configuration and processor, wherever they are stored."""
    config = without_bookkeeping(model.config.to_dict())
    return digest_of([weights_fingerprint(model), config, processor_settings(processor)])


def audio_key(audio: Mapping[str, Any]) -> str:
    """
    Returns a key that differs for every sound, and for every version of it: the digest of embedded bytes, or a file's
    path, size and time of change.
    """
    if audio["bytes"] is not None:
        return "sha256 " + hashlib.sha256(audio["bytes"]).hexdigest()
    path = os.path.abspath(audio["path"])
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return f"missing {path}"
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def split_fingerprint(rows: Dataset) -> dict[str, str]:
    """
    Returns two digests of a split: `rows`, of every column but the sound, and `sounds`, of each row's [`audio_key`].
    Files are not read, so that a corpus takes seconds: their path, size and time of change stand for them.
    """
    values, sounds, table = hashlib.sha256(), hashlib.sha256(), rows.with_format("arrow")
    names = sorted(set(rows.column_names) - {"audio"})
    key_of_file = cache(lambda path: audio_key({"bytes": None, "path": path}))
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        part = table[start : start + ROWS_AT_A_TIME]
        columns = {name: part[name].to_pylist() for name in names}
        values.update(json.dumps(columns, default=str).encode())
        for audio in part["audio"].to_pylist():
            key = key_of_file(audio["path"]) if audio["bytes"] is None else audio_key(audio)
            sounds.update(f"{key}\n".encode())
    return {"rows": values.hexdigest(), "sounds": sounds.hexdigest()}
