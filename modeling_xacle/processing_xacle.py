"""Turns caption and audio into model inputs: the only place that orders the sequence and counts its tokens."""

from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

from .feature_extraction_xacle import is_batch, log_losses
from .modeling_towers import audio_family

AUDIO_START_TOKEN = "[AUDIO_START]"
AUDIO_END_TOKEN = "[AUDIO_END]"
SCORE_TOKEN = "[SCORE]"
AUDIO_TOKEN = "[AUDIO]"
# In the order of their ids: the published checkpoint's three, then the one whose embedding is never used.
SPECIAL_TOKENS = [AUDIO_START_TOKEN, AUDIO_END_TOKEN, SCORE_TOKEN, AUDIO_TOKEN]
IGNORED = -100  # label of a position that does not count in the loss


def check_agreement(config: Any, processor: "XacleProcessor") -> None:
    """
    Check that a model's config and its processor agree: on the special tokens, the number of audio tokens and the order
    of the sequence, which `caption_likelihood` decides; with it, also on the token that ends a caption.

    Raises:
        ValueError: They differ, so that scores would have no meaning.
    """
    check_front_end(config.audio_config, processor.feature_extractor)
    if not hasattr(config, "score_token_id"):  # a judge with two towers
        check_vocabulary(config.text_config, processor.tokenizer)
        return
    ids = [config.audio_start_token_id, *[config.audio_token_id] * config.num_audio_tokens]
    if processor.audio_and_score_ids != [*ids, config.audio_end_token_id, config.score_token_id]:
        raise ValueError(
            "Model and processor differ in their special tokens or in the number of audio tokens: give the "
            "processor that was saved with this model."
        )
    if processor.audio_first != config.caption_likelihood:
        raise ValueError(
            f"The processor puts captions {'behind' if processor.audio_first else 'before'} the sound "
            f"(audio_first={processor.audio_first}), but the model was built for the other order "
            f"(caption_likelihood={config.caption_likelihood}): give the processor that was saved with this model, or "
            f'set "audio_first" to {str(config.caption_likelihood).lower()} in its processor_config.json.'
        )
    end = processor.tokenizer.eos_token_id
    if config.caption_likelihood and config.end_token_id != end:
        raise ValueError(
            f"A caption ends with token {config.end_token_id} in the model, but with {end} in its tokenizer, so that "
            "likelihoods would be wrong: give the processor that was saved with this model."
        )


def check_vocabulary(text_config: Any, tokenizer: Any) -> None:
    """
    Check that a text tower, given by its config, knows all tokens of a tokenizer.

    Raises:
        ValueError: It does not.
    """
    if len(tokenizer) > text_config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, but the text tower knows {text_config.vocab_size}: give the "
            "processor that was saved with this model."
        )


def check_front_end(audio_config: Any, extractor: Any) -> None:
    """
    Check that a feature extractor is of the kind that an audio tower, given by its config, was trained with.

    Raises:
        ValueError: It is not, so that the tower would hear noise.
    """
    wanted, found = audio_family(audio_config).extractor, type(getattr(extractor, "front_end", extractor)).__name__
    if found != wanted:
        raise ValueError(
            f"An audio tower of type {audio_config.model_type} hears what {wanted} makes of a sound, not what {found} "
            "does: give the processor that was saved with this model."
        )


class PairProcessor(ProcessorMixin):
    """
    What the processors of all models share: it makes inputs of pairs, from a feature extractor and a tokenizer. A child
    class makes a pair's sequence (`tokenize_caption`).
    """

    max_text_tokens: int

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> "PairProcessor":
        """
        Load from a folder or Hub id.

        Raises:
            OSError: There is no complete processor; a model alone cannot score.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except OSError as error:
            raise OSError(
                f"{pretrained_model_name_or_path} has no complete {cls.__name__} (processor_config.json, tokenizer): "
                f"save it beside the model with `processor.save_pretrained`. {error}"
            ) from error

    @property
    def model_input_names(self) -> list[str]:
        """The names of the tensors that a call with captions and audio returns."""
        return ["input_ids", "attention_mask", *self.feature_extractor.model_input_names]

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: Any = None,
        sampling_rate: int | None = None,
        return_tensors: str = "pt",
        device: str | torch.device | None = None,
        return_notes: bool = False,
    ) -> BatchFeature:
        """
        Make model inputs for pairs of a caption and a clip.

        Args:
            text (`str` or `list[str]`, *optional*): Captions.
            audio (*optional*): Clips, each as [`load_waveform`] takes them, as many as captions. Without them, only
                the sequence is built, for a model that gets `audio_features`.
            sampling_rate (`int`, *optional*): Rate in Hz of bare samples.
            return_tensors (`str`): `"pt"` or `"np"`.
            device (`str` or `torch.device`, *optional*): Where the spectrogram is computed and all outputs stay; by
                default the CPU.
            return_notes (`bool`): Also return `notes` on what was cut, padded or resampled in each pair, instead of
                logging the cuts.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` of shape `(batch_size, sequence_length)` (1 for
            tokens, 0 for the padding at the end), and what the feature extractor returns: `input_features` of shape
            `(batch_size, num_frames, num_mel_bins)` for BEATs.

        Raises:
            ValueError: A caption is empty, captions and clips differ in number, or audio cannot be used.
            TypeError: A caption is not a string.
        """
        if text is None and audio is None:
            raise ValueError("Nothing to process: give `text`, `audio` or both.")
        data: dict[str, Any] = {}
        notes: list[list[str]] = []
        if audio is not None:
            data.update(self.feature_extractor(audio, sampling_rate, device=device, return_notes=True))
            notes = data.pop("notes")
        if text is not None:
            captions = list(text) if is_batch(text) else [text]
            if audio is not None:
                self._check_pairs(len(captions), len(notes))
            sequences, caption_notes = zip(*map(self.tokenize_caption, captions), strict=True)
            data.update(self.pad(sequences, device=device))
            notes = [a + b for a, b in zip(notes or [[]] * len(captions), caption_notes, strict=True)]
        batch = BatchFeature(data, tensor_type=return_tensors)
        if return_notes:
            batch["notes"] = notes
        else:
            log_losses(notes)
        return batch

    def tokenize_caption(self, caption: str) -> tuple[list[int], list[str]]:
        """
        Returns the whole sequence of one pair, unpadded, and a note if the caption was cut.

        Raises:
            TypeError: The caption is not a string.
            ValueError: The caption is empty or blank, or not valid Unicode.
        """
        raise NotImplementedError

    def _encode(self, caption: str, **kwargs: Any) -> list[int]:
        """Returns a caption's token ids; special tokens in its text are not recognised."""
        if caption is None:
            raise TypeError("There is no caption.")
        if not isinstance(caption, str):
            raise TypeError(f"A caption must be a string, not {type(caption).__name__}: {caption!r}.")
        if not any(character.isprintable() and not character.isspace() for character in caption):
            raise ValueError(f"The caption is empty ({caption!r}): a score needs words to compare with the sound.")
        if any("\ud800" <= character <= "\udfff" for character in caption):
            raise ValueError(
                f"The caption {caption!r} is not valid Unicode (it has a lone surrogate): read its file as UTF-8."
            )
        return self.tokenizer(caption, split_special_tokens=True, verbose=False, **kwargs)["input_ids"]

    @staticmethod
    def _check_pairs(num_captions: int, num_clips: int) -> None:
        if num_captions != num_clips:
            raise ValueError(
                f"{num_captions} captions and {num_clips} clips do not make pairs: give as many of the one as of the "
                "other."
            )

    @property
    def pad_id(self) -> int:
        """The id that fills sequences up; any does where no mask is needed, because nothing attends to it."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(id for id in ids if id is not None)

    def pad(self, sequences: list[list[int]], device: str | torch.device | None = None) -> dict[str, torch.Tensor]:
        """
        Returns int64 `input_ids` and `attention_mask` of shape `(batch_size, longest)`, padded only at the end.
        """
        length, pad_id = max(map(len, sequences)), self.pad_id
        input_ids = [[*ids, *[pad_id] * (length - len(ids))] for ids in sequences]
        attention_mask = [[1] * len(ids) + [0] * (length - len(ids)) for ids in sequences]
        return {
            "input_ids": torch.tensor(input_ids, device=device),
            "attention_mask": torch.tensor(attention_mask, device=device),
        }


class XacleProcessor(PairProcessor):
    r"""
    Builds the sequence: caption, `[AUDIO_START]`, N x `[AUDIO]`, `[AUDIO_END]`, `[SCORE]`, padded at its end (arXiv
    2602.00604, section 2). The published EOS after `[SCORE]` is left out: under causal attention it cannot change the
    score.

    Args:
        feature_extractor (`WindowFeatureExtractor`): Audio -> what the model's audio tower hears.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the language model with the four tokens of `SPECIAL_TOKENS`
            added.
        num_audio_tokens (`int`): Audio tokens per clip, as in the model's `config.num_audio_tokens`.
        max_text_tokens (`int`): Caption tokens to keep.
        audio_first (`bool`): Put the caption after the audio, as captioning (stage 1) does, rather than before it, as
            published: `[SCORE]` then reads how well each word follows from the sound, which stage 1 taught.
    """

    def __init__(
        self,
        feature_extractor: Any,
        tokenizer: Any,
        num_audio_tokens: int = 100,
        max_text_tokens: int = 256,
        audio_first: bool = False,
        **kwargs: Any,
    ):
        super().__init__(feature_extractor, tokenizer, **kwargs)
        self.audio_first = audio_first
        self.num_audio_tokens = num_audio_tokens
        self.max_text_tokens = max_text_tokens
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
        if missing:
            raise ValueError(
                f"The tokenizer lacks {', '.join(missing)}: take one that `xacle init` or `xacle convert tmu` wrote."
            )
        audio_start, audio_end, score, audio = (vocabulary[token] for token in SPECIAL_TOKENS)
        self.audio_and_score_ids = [audio_start, *[audio] * num_audio_tokens, audio_end, score]

    def prepare_captioning(
        self,
        audio: Any,
        text: str | list[str] | None = None,
        sampling_rate: int | None = None,
        device: str | torch.device | None = None,
    ) -> BatchFeature:
        """
        Make inputs of [`XacleForConditionalGeneration`]: `[AUDIO_START]`, N x `[AUDIO]`, `[AUDIO_END]`, and for
        training the caption and the tokenizer's end-of-sequence token.

        Args:
            audio: Clips, each as [`load_waveform`] takes them.
            text (`str` or `list[str]`, *optional*): Captions, as many as clips; without them, prompts to generate from.
            sampling_rate (`int`, *optional*): Rate in Hz of bare samples.
            device (`str` or `torch.device`, *optional*): Where the spectrogram is computed and all outputs stay.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` of shape `(batch_size, sequence_length)`,
            what the feature extractor returns, and with captions `labels` of the same shape as `input_ids`: the id
            where a token is to be predicted, -100 elsewhere.
        """
        features = self.feature_extractor(audio, sampling_rate, device=device)
        if text is None:
            prompts = [self.audio_and_score_ids[:-1]] * len(features["input_features"])
            return BatchFeature({**features, **self.pad(prompts, device=device)})
        captions = list(text) if is_batch(text) else [text]
        self._check_pairs(len(captions), len(features["input_features"]))
        return BatchFeature({**features, **self.caption_sequences(captions, device=device)})

    def caption_sequences(
        self, captions: list[str], device: str | torch.device | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Make the inputs of [`~XacleProcessor.prepare_captioning`] that need no sound: `input_ids`, `attention_mask` and
        `labels` of shape `(batch_size, sequence_length)`.
        """
        prompt, end = self.audio_and_score_ids[:-1], [self.tokenizer.eos_token_id]
        targets = [
            self._encode(caption, add_special_tokens=False)[: self.max_text_tokens] + end for caption in captions
        ]
        batch = self.pad([prompt + target for target in targets], device=device)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        labels[:, : len(prompt)] = IGNORED
        return {**batch, "labels": labels}

    def tokenize_caption(self, caption: str) -> tuple[list[int], list[str]]:
        """
        Returns the whole sequence of one pair, unpadded, and a note if the caption was cut.

        A caption that spells out a special token stays text, so the only `[SCORE]` is the one placed here.

        Raises:
            TypeError: The caption is not a string.
            ValueError: The caption is empty or blank, or not valid Unicode.
        """
        ids = self._encode(caption, add_special_tokens=not self.audio_first)  # none in the middle of a sequence
        notes = []
        if len(ids) > self.max_text_tokens:
            notes.append(f"caption cut: {len(ids)} tokens to {self.max_text_tokens}")
        ids = ids[: self.max_text_tokens]
        if self.audio_first:
            *audio_ids, score_id = self.audio_and_score_ids
            return [*audio_ids, *ids, score_id], notes
        return ids + self.audio_and_score_ids, notes
