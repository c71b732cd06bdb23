"""`pipeline("audio-text-alignment")`: sounds and captions in, scores out."""

from collections.abc import Iterator, Mapping, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from .feature_extraction_xacle import is_batch, load_waveform

logger = logging.get_logger(__name__)

# Many captions or windows of one clip go through the model together even where the caller's batches are smaller.
SMALLEST_PASS = 16
FIRST_SCORING_STAGE = 2


def window_spans(num_samples: int, window: int, hop: int) -> list[tuple[int, int]]:
    """
    Start and end samples of windows that begin every `hop` samples until the end is covered; the last one may be
    shorter.
    """
    return [(start, min(start + window, num_samples)) for start in range(0, max(1, num_samples - (window - hop)), hop)]


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

    A result has `score`, and `notes` where audio was resampled, mixed down, cut or padded, or a caption cut.

    Args of a call:
        batch_size (`int`): Inputs loaded together, and at least 16 clips or pairs of them in one pass through the
            model.
        sampling_rate (`int`): Rate in Hz of bare samples.
        window_seconds (`float`), hop_seconds (`float`): Score the whole of the audio in windows of at most the model's
            length, one every `hop_seconds` (by default back to back); the result is their mean, weighted by length. By
            default only the beginning counts, as published.
        return_windows (`bool`): Also return `windows`, each with its `start` and `end` in seconds and its `score`.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not hasattr(self.processor, "tokenize_caption"):
            raise ValueError(
                "The model comes without its XacleProcessor: save one into its folder, or give `processor`."
            )
        self.model.eval()
        stage = self.model.config.training_stage
        if stage < FIRST_SCORING_STAGE:
            logger.warning(
                f"The score head of this model was never trained (training_stage={stage}): its scores are noise."
            )

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Score one input, a list of them, or a stream; the class says what they may be."""
        if isinstance(inputs, Iterator) or hasattr(inputs, "column_names"):  # the latter: a datasets.Dataset
            return super().__call__((row for row in inputs), **kwargs)
        if isinstance(inputs, Mapping) and self._is_columns(inputs):
            inputs = self._rows(inputs)
        if isinstance(inputs, (list, tuple)):
            return super().__call__(list(inputs), **kwargs) if inputs else []
        return super().__call__(inputs, **kwargs)

    @staticmethod
    def _is_columns(inputs: Mapping) -> bool:
        """Whether `audio` is a column: a list of clips, or what `dataset["audio"]` gives."""
        audio = inputs.get("audio")
        return is_batch(audio) or type(audio).__name__ == "Column"

    @staticmethod
    def _rows(columns: Mapping) -> list[dict[str, Any]]:
        audios, texts = columns["audio"], columns.get("text")
        if isinstance(texts, str) or not isinstance(texts, Sized) or len(audios) != len(texts):
            count = len(texts) if isinstance(texts, Sized) and not isinstance(texts, str) else 1
            raise ValueError(
                f"{len(audios)} clips and {count} captions do not make pairs: a list of clips needs as many captions."
            )
        shared = {key: value for key, value in columns.items() if key == "sampling_rate"}
        return [{"audio": audio, "text": text, **shared} for audio, text in zip(audios, texts, strict=True)]

    def _sanitize_parameters(
        self,
        sampling_rate: int | None = None,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
        return_windows: bool | None = None,
    ) -> tuple[dict, dict, dict]:
        """Sort the arguments of a call, or of the constructor, to the steps they belong to."""
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
        One result an input, in order. Inputs differ in windows and captions, so the base class's padding of whole
        inputs cannot serve.
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
        """The result of one input."""
        return next(self.get_iterator([inputs], 0, 1, preprocess_params, forward_params, postprocess_params))

    def preprocess(
        self,
        inputs: Mapping,
        sampling_rate: int | None = None,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
    ) -> dict[str, Any]:
        """
        Load and tokenize one input.

        Returns:
            `input_features` of shape `(num_windows, num_frames, num_mel_bins)`, `sequences` (token ids of each
            caption), `captions`, `spans` (start and end of each window in seconds) and `notes` (of each caption);
            `is_list` if captions came as a list.
        """
        if not isinstance(inputs, Mapping) or "audio" not in inputs or "text" not in inputs:
            found = f"the keys {sorted(inputs)}" if isinstance(inputs, Mapping) else f"a {type(inputs).__name__}"
            raise ValueError(f"An input must be a dict with `audio` and `text`, not {found}.")
        audio, text = inputs["audio"], inputs["text"]
        captions = list(text) if isinstance(text, (list, tuple)) else [text]
        if not captions:
            raise ValueError("`text` is an empty list: give at least one caption.")
        try:
            sequences, caption_notes = zip(*map(self.processor.tokenize_caption, captions), strict=True)
            waveforms, spans, notes = self._windows(
                audio, inputs.get("sampling_rate", sampling_rate), window_seconds, hop_seconds
            )
        except (ValueError, TypeError, OSError) as error:
            error.add_note(f"in the input with the text {text!r}")
            raise
        return {
            "input_features": self.processor.feature_extractor.log_mel(waveforms),
            "sequences": list(sequences),
            "captions": captions,
            "spans": spans,
            "notes": [notes + more for more in caption_notes],
            "is_list": captions is not text and not isinstance(text, str),
        }

    def _windows(
        self, audio: Any, sampling_rate: int | None, window_seconds: float | None, hop_seconds: float | None
    ) -> tuple[torch.Tensor, list[tuple[float, float]], list[str]]:
        """Waveforms `(num_windows, samples)` of the model's length, their spans in seconds, and notes."""
        extractor = self.processor.feature_extractor
        if window_seconds is None and hop_seconds is None:
            waveform, notes = extractor.load(audio, sampling_rate)
            return waveform.unsqueeze(0), [(0.0, extractor.max_seconds)], notes
        window_seconds = extractor.max_seconds if window_seconds is None else window_seconds
        hop_seconds = window_seconds if hop_seconds is None else hop_seconds
        if not 0 < hop_seconds <= window_seconds <= extractor.max_seconds:
            raise ValueError(
                f"window_seconds={window_seconds:g} and hop_seconds={hop_seconds:g} must satisfy 0 < hop <= "
                f"window <= {extractor.max_seconds:g}."
            )
        waveform, notes = load_waveform(audio, sampling_rate, extractor.sampling_rate)
        window, hop = (max(1, round(seconds * extractor.sampling_rate)) for seconds in (window_seconds, hop_seconds))
        spans = window_spans(len(waveform), window, hop)
        notes.append(f"windowed: {len(spans)} of {window_seconds:g} s, one every {hop_seconds:g} s")
        waveforms = torch.stack([extractor.fit(waveform[start:end]) for start, end in spans])
        return (
            waveforms,
            [(start / extractor.sampling_rate, end / extractor.sampling_rate) for start, end in spans],
            notes,
        )

    def _forward(self, items: list[dict[str, Any]], pass_size: int = SMALLEST_PASS) -> list[torch.Tensor]:
        """
        Score a batch of inputs: each window is encoded once, then paired with each of its captions.

        Returns:
            For each input a `torch.Tensor` of shape `(num_windows, num_captions)`, on the 0-10 scale.
        """
        features = torch.cat([item["input_features"] for item in items])  # (all windows, T, F)
        audio_features = torch.cat([self.model.get_audio_features(part) for part in features.split(pass_size)])
        clips = torch.arange(len(features)).split([len(item["input_features"]) for item in items])
        pairs = [
            (clip, ids)
            for rows, item in zip(clips, items, strict=True)
            for clip in rows.tolist()
            for ids in item["sequences"]
        ]
        scores = []
        for start in range(0, len(pairs), pass_size):
            rows, sequences = zip(*pairs[start : start + pass_size], strict=True)
            batch = self.processor.pad(sequences, device=self.model.device)
            scores.append(self.model(**batch, audio_features=audio_features[list(rows)]).scores.float())
        shapes = [(len(item["input_features"]), len(item["sequences"])) for item in items]
        parts = torch.cat(scores).split([windows * captions for windows, captions in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def postprocess(
        self, output: dict[str, Any], return_windows: bool = False
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """One dict for a caption, a list of them for a list of captions."""
        spans = output["spans"]
        weights = torch.tensor([end - start for start, end in spans])
        means = (weights / weights.sum()) @ output["scores"]  # (W,) @ (W, C) -> (C,)
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
        self.processor.save_pretrained(save_directory)
        custom_object_save(self, save_directory)
