"""Turns caption and audio into the inputs of judges with two towers."""

from typing import Any

from .processing_xacle import PairProcessor


class XacleDualProcessor(PairProcessor):
    r"""
    Makes inputs of a [`XacleDualEncoder`]: the caption as its text tower was trained to read it, and the sound's
    features.

    Args:
        feature_extractor (`WindowFeatureExtractor`): Audio -> what the audio tower hears.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the text tower.
        max_text_tokens (`int`): Tokens of a caption to keep, those that frame it included; at most what the text tower
            takes.
    """

    def __init__(self, feature_extractor: Any, tokenizer: Any, max_text_tokens: int = 256, **kwargs: Any):
        super().__init__(feature_extractor, tokenizer, **kwargs)
        self.max_text_tokens = min(max_text_tokens, tokenizer.model_max_length)

    def tokenize_caption(self, caption: str) -> tuple[list[int], list[str]]:
        """
        Returns a caption's tokens, unpadded, and a note if it was cut.

        Raises:
            TypeError: The caption is not a string.
            ValueError: The caption is empty or blank, or not valid Unicode.
        """
        ids = self._encode(caption)
        if len(ids) <= self.max_text_tokens:
            return ids, []
        note = f"caption cut: {len(ids)} tokens to {self.max_text_tokens}"
        return self._encode(caption, truncation=True, max_length=self.max_text_tokens), [note]


__all__ = ["XacleDualProcessor"]
