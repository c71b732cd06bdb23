"""`pipeline("audio-text-alignment")`: turns sounds and captions into scores."""

import copy
from collections.abc import Iterator, Mapping, Sized
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from .feature_extraction_xacle import is_batch
from .processing_xacle import check_agreement
from .waveforms_xacle import load_waveform

logger = logging.get_logger(__name__)

# Captions or windows of one clip go through the model together even if the caller's batches are smaller.
SMALLEST_PASS = 16
FIRST_SCORING_STAGE = 2
MODEL_TYPES = ("xacle", "xacle_dual_encoder")
SHORTEST_HOP = 0.025  # seconds: one frame of the spectrogram


def window_spans(num_samples: int, window: int, hop: int) -> list[tuple[int, int]]:
    """
    Returns start and end samples of windows that begin every `hop` samples until the end is covered; the last one may
    be shorter.
    """
    return [(start, min(start + window, num_samples)) for start in range(0, max(1, num_samples - (window - hop)), hop)]


def windows_of(items: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """Returns all windows of preprocessed inputs, each as its input and its number."""
    return [(item, number) for item in items for number in range(len(item["spans"]))]


def scores_by_item(scores: torch.Tensor, items: list[dict[str, Any]]) -> list[torch.Tensor]:
    """Splits the scores of all pairs, `(num_pairs,)`: `(num_windows, num_captions)` for each preprocessed input."""
    shapes = [(len(item["spans"]), len(item["sequences"])) for item in items]
    parts = scores.split([num_windows * num_captions for num_windows, num_captions in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def mean_of_windows(values: torch.Tensor, spans: list[tuple[float, float]]) -> torch.Tensor:
    """Returns the mean over windows, each with its start and end, weighted by length: `(num_windows, N)` -> `(N,)`."""
    weights = torch.tensor([end - start for start, end in spans], device=values.device)
    # No matrix product, because autocast would round the scores.
    return ((weights / weights.sum())[:, None] * values).sum(dim=0)  # (W, 1) * (W, N) -> (N,)


def is_column(audio: Any) -> bool:
    """Returns True for several clips or captions: a list of them, or what `dataset["audio"]` returns."""
    return is_batch(audio) or type(audio).__name__ == "Column"


def columns_to_rows(columns: Mapping) -> list[dict[str, Any]]:
    """
    Turns columns into one input per clip.

    Raises:
        ValueError: A column is shorter or longer than the column of clips, or is a single caption.
    """
    num_clips = len(columns["audio"])
    rows: list[dict[str, Any]] = [{} for _ in range(num_clips)]
    for name, values in columns.items():
        if name == "sampling_rate" and not isinstance(values, Sized):
            values = [values] * num_clips
        size = len(values) if isinstance(values, Sized) and not isinstance(values, str) else 1
        if size != num_clips or isinstance(values, str):
            what = "captions" if name == "text" else f"of {name}"
            raise ValueError(f"{num_clips} clips and {size} {what} do not make pairs: give as many as clips.")
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Turns dropout off, then restores each part's mode: a pipeline may be used between training steps."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class AudioTextAlignmentPipeline(Pipeline):
    """
    Scores sounds against captions.

    ```python
    >>> align = pipeline("audio-text-alignment", model="runs/stage3")
    >>> align({"audio": "dog.wav", "text": "A dog barks twice"})
    {'score': 8.1}
    >>> align({"audio": "dog.wav", "text": ["A dog barks", "Rain"]})
    [{'text': 'A dog barks', 'score': 7.9}, {'text': 'Rain', 'score': 0.6}]
    ```

    The input is a dict with `audio` (whatever [`load_waveform`] takes) and `text` (a caption, or a list of captions
    for which the audio is encoded once); lists of such dicts; a dict of two columns of equal length; a generator or a
    `datasets.Dataset` with these columns, for which results are yielded as they come. Bare samples need
    `sampling_rate`, in the dict or in the call.

    A result has `score`, and `notes` if audio was resampled, mixed down, cut or padded, or a caption was cut.

    Args of a call:
        batch_size (`int`): Inputs loaded together; a pass through the model takes up to this many of their clips or
            pairs, or 16 if that is more.
        sampling_rate (`int`): Rate in Hz of bare samples.
        window_seconds (`float`), hop_seconds (`float`): Score the whole audio in windows of at most the model's length,
            one every `hop_seconds` (by default back to back); the result is their mean, weighted by length. By
            default, only the beginning counts, as published.
        return_windows (`bool`): Also return `windows`, each with its `start` and `end` in seconds and its `score`.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._check_parts()

    def _check_parts(self) -> None:
        """Check that model and processor fit this task and each other; warn if the model is untrained."""
        config, processor = self.model.config, self.processor
        if config.model_type not in MODEL_TYPES:
            raise ValueError(f"A {config.model_type} model cannot do this task; it takes a xacle model.")
        if not hasattr(processor, "tokenize_caption"):
            raise ValueError(
                "The model comes without its XacleProcessor: save one into its folder, or give `processor`."
            )
        check_agreement(config, processor)
        stage = config.training_stage
        if stage < FIRST_SCORING_STAGE and any(True for _ in self.model.score_head.parameters()):
            logger.warning(
                f"The score head of this model was never trained (training_stage={stage}): its scores are noise."
            )

    def tokenize(self, caption: str) -> tuple[Any, list[str]]:
        """
        Returns what the model needs of a caption, and a note if it was cut.

        Raises:
            TypeError: The caption is not a string.
            ValueError: It is empty, or not valid Unicode.
        """
        return self.processor.tokenize_caption(caption)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Score one input, a list of them, or a stream; the class docstring says what an input may be."""
        if isinstance(inputs, Iterator) or hasattr(inputs, "column_names"):  # the latter: a datasets.Dataset
            return super().__call__((row for row in inputs), **kwargs)
        if isinstance(inputs, Mapping) and is_column(inputs.get("audio")):
            inputs = columns_to_rows(inputs)
        if isinstance(inputs, (list, tuple)):
            return super().__call__(list(inputs), **kwargs) if inputs else []
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self,
        sampling_rate: int | None = None,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
        return_windows: bool | None = None,
    ) -> tuple[dict, dict, dict]:
        """Assign the arguments of a call, or of the constructor, to the steps they belong to."""
        preprocess = {"sampling_rate": sampling_rate, "window_seconds": window_seconds, "hop_seconds": hop_seconds}
        preprocess = {name: value for name, value in preprocess.items() if value is not None}
        return preprocess, {}, {} if return_windows is None else {"return_windows": return_windows}

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Iterator[Any]:
        """
        Yields one result per input, in order. Inputs differ in their numbers of windows and captions, so the base
        class's padding of whole inputs does not work.
        """
        if isinstance(inputs, Sized):
            dataset = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            dataset = PipelineIterator(inputs, self.preprocess, preprocess_params)
            num_workers = min(num_workers, 1)  # each worker would run through the whole stream
        for items in DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=list):
            for scores, item in zip(
                self.forward(items, pass_size=max(batch_size, SMALLEST_PASS), **forward_params), items, strict=True
            ):
                yield self.postprocess({**item, "scores": scores}, **postprocess_params)

    def run_single(self, inputs: Any, preprocess_params: dict, forward_params: dict, postprocess_params: dict) -> Any:
        """Returns the result of one input."""
        return next(self.get_iterator([inputs], 0, 1, preprocess_params, forward_params, postprocess_params))

    def preprocess(
        self,
        inputs: Mapping,
        sampling_rate: int | None = None,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
        tokenized: list[tuple[Any, list[str]]] | None = None,
    ) -> dict[str, Any]:
        """
        Load and tokenize one input.

        Args:
            tokenized (`list`, *optional*): What [`tokenize`] returned for each caption, if it was called before.

        Returns:
            `waveform` of shape `(samples,)`, `spans` (first and last sample of each window), `captions`, `sequences`
            (token ids) and `notes` of each caption, and `is_list`: whether captions came as a list.
        """
        if not isinstance(inputs, Mapping) or "audio" not in inputs or "text" not in inputs:
            found = f"the keys {sorted(inputs)}" if isinstance(inputs, Mapping) else f"a {type(inputs).__name__}"
            raise ValueError(f"An input must be a dict with `audio` and `text`, not {found}.")
        audio, text = inputs["audio"], inputs["text"]
        is_list = is_column(text)
        captions = list(text) if is_list else [text]
        if not captions:
            raise ValueError("`text` is an empty list: give at least one caption.")
        rate = sampling_rate if inputs.get("sampling_rate") is None else inputs["sampling_rate"]
        try:
            sequences, caption_notes = zip(*(tokenized or map(self.tokenize, captions)), strict=True)
            waveform, spans, notes = self._load(audio, rate, window_seconds, hop_seconds)
        except (ValueError, TypeError, OSError) as error:
            error.add_note(f"in the input with the text {text!r}")
            raise
        return {
            "waveform": waveform,
            "spans": spans,
            "captions": captions,
            "sequences": list(sequences),
            "notes": [notes + more for more in caption_notes],
            "is_list": is_list,
        }

    def _load(
        self, audio: Any, sampling_rate: int | None, window_seconds: float | None, hop_seconds: float | None
    ) -> tuple[torch.Tensor, list[tuple[int, int]], list[str]]:
        """Returns the waveform `(samples,)`, the first and last sample of each window to score, and notes."""
        extractor = self.processor.feature_extractor
        if window_seconds is None and hop_seconds is None:
            waveform, notes = extractor.load(audio, sampling_rate)
            return waveform, [(0, len(waveform))], notes
        window_seconds = extractor.max_seconds if window_seconds is None else window_seconds
        hop_seconds = window_seconds if hop_seconds is None else hop_seconds
        if not SHORTEST_HOP <= hop_seconds <= window_seconds <= extractor.max_seconds:
            raise ValueError(
                f"window_seconds={window_seconds:g} and hop_seconds={hop_seconds:g} must satisfy "
                f"{SHORTEST_HOP:g} <= hop <= window <= {extractor.max_seconds:g}."
            )
        waveform, notes = load_waveform(audio, sampling_rate, extractor.sampling_rate)
        window, hop = (round(seconds * extractor.sampling_rate) for seconds in (window_seconds, hop_seconds))
        spans = window_spans(len(waveform), window, hop)
        notes.append(f"windowed: {len(spans)} of {window_seconds:g} s, one every {hop_seconds:g} s")
        shortest = min(end - start for start, end in spans)
        return waveform, spans, notes + extractor.padding_note(shortest, "windows, the shortest of ")

    def _forward(self, items: list[dict[str, Any]], pass_size: int = SMALLEST_PASS) -> list[torch.Tensor]:
        """
        Score a batch of inputs: each window is encoded once, then paired with each of its captions. No more than
        `pass_size` windows, and as many pairs, are in memory at a time.

        Returns:
            A `torch.Tensor` of shape `(num_windows, num_captions)` for each input, on the 0-10 scale.
        """
        windows, scores = windows_of(items), []
        with self.ready():
            for start in range(0, len(windows), pass_size):
                chosen = windows[start : start + pass_size]
                audio_features = self.model.get_audio_features(**self.features(chosen))  # -> (W, N, D)
                scores.append(self.score_windows(chosen, audio_features, pass_size))
        return scores_by_item(torch.cat(scores), items)

    def ready(self) -> AbstractContextManager:
        """Surrounds all passes through the model."""
        return evaluation_mode(self.model)

    def without_model(self) -> "AudioTextAlignmentPipeline":
        """Returns a copy for processes that load and tokenize, and need no weights for that."""
        light = copy.copy(self)
        light.model = None
        return light

    def with_spectrograms(self, item: dict[str, Any]) -> dict[str, Any]:
        """
        Returns a preprocessed input with `sound`, the features of its windows, instead of its waveform: the first step
        of [`_forward`], which loaders can do in advance.
        """
        kept = {name: value for name, value in item.items() if name != "waveform"}
        return {**kept, "sound": self.features(windows_of([item]))}

    def features(self, windows: list[tuple[dict[str, Any], int]]) -> dict[str, torch.Tensor]:
        """Returns the arguments of `get_audio_features` for windows; all inputs have them already, or none."""
        first, _ = windows[0]
        if "sound" in first:
            names = first["sound"]
            return {name: torch.stack([item["sound"][name][number] for item, number in windows]) for name in names}
        spans = [(item["waveform"], *item["spans"][number]) for item, number in windows]
        waveforms = [waveform[start:end] for waveform, start, end in spans]
        return self.processor.feature_extractor.encode(waveforms, device=waveforms[0].device)

    def score_windows(
        self, windows: list[tuple[dict[str, Any], int]], audio_features: torch.Tensor, pass_size: int
    ) -> torch.Tensor:
        """
        Scores each window, an input with the window's number, against each of its captions, given what
        `get_audio_features` makes of the windows: `(num_windows, num_audio_tokens, hidden_size)` -> `(num_pairs,)`.
        """
        pairs = [(row, ids) for row, (item, _) in enumerate(windows) for ids in item["sequences"]]
        order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][1]))  # little padding in each pass
        scores = audio_features.new_empty(len(pairs), dtype=torch.float32)
        for start in range(0, len(pairs), pass_size):
            places = order[start : start + pass_size]
            rows, sequences = zip(*(pairs[place] for place in places), strict=True)
            batch = self.processor.pad(sequences, device=self.model.device)
            scores[places] = self.model(**batch, audio_features=audio_features[list(rows)]).scores.float()
        return scores

    def postprocess(
        self, output: dict[str, Any], return_windows: bool = False
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Returns one dict for a caption, a list of them for a list of captions."""
        sampling_rate = self.processor.feature_extractor.sampling_rate
        spans = [(start / sampling_rate, end / sampling_rate) for start, end in output["spans"]]
        means = mean_of_windows(output["scores"], spans)
        results = []
        for index, caption in enumerate(output["captions"]):
            result = {"text": caption} if output["is_list"] else {}
            result["score"] = means[index].item()
            if output["notes"][index]:
                result["notes"] = output["notes"][index]
            if return_windows:
                scores = output["scores"][:, index].tolist()
                result["windows"] = [
                    {"start": s, "end": e, "score": score} for (s, e), score in zip(spans, scores, strict=True)
                ]
            results.append(result)
        return results if output["is_list"] else results[0]

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """
        Save a folder that loads by itself, code included. The base class leaves out the processor and writes the
        registered default's local path.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        # `pipeline(dtype=...)` leaves the dtype there, which JSON cannot hold.
        self.processor.tokenizer.init_kwargs.pop("dtype", None)
        self.processor.save_pretrained(save_directory)
