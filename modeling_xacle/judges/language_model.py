"""Audio language models as judges: asked whether a caption describes a sound, they score by how likely they say yes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, pad
from transformers import (
    AutoConfig,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
from transformers.utils import logging

from ..checkpoints.loading import load_model, load_part
from ..pipeline_xacle import SMALLEST_PASS, evaluation_mode
from .judge_pipeline import JudgePipeline

logger = logging.get_logger(__name__)

# By type of model, the class that loads it: Transformers 5.24 lists two of them elsewhere.
LOADERS = dict.fromkeys(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES, AutoModelForMultimodalLM)
LOADERS |= dict.fromkeys(["audioflamingo3", "musicflamingo"], AutoModelForSeq2SeqLM)
PLACE = "{caption}"
QUESTIONS = {
    "describes": f'Does the caption "{PLACE}" describe this sound? Answer yes or no.',
    "hears": f'Listen to the sound. Is this what you hear: "{PLACE}"? Answer yes or no.',
    "correct": f'Somebody wrote about this sound: "{PLACE}". Is that correct and complete? Answer yes or no.',
    "matches": f'Caption: "{PLACE}"\nDo the caption and the sound match? Answer yes or no.',
}
DEFAULT_QUESTIONS = ("describes",)
ANSWERS = ("yes", "no")
# Seconds: what a processor takes that says nothing of its own, and silence is added to what is shorter, because
# encoders that take a frame of 40 ms may find none in it.
WINDOW_SECONDS = 30
SHORTEST_SOUND = 0.1
# A model that gives both answers together less probability than this wants to say something else.
SMALLEST_SHARE = 0.01


def answer_tokens(tokenizer: Any, answer: str) -> list[int]:
    """
    Returns the ids of all tokens that say an answer: in small letters, capitalised or in capitals, with or without a
    space before it. Which of them a model uses depends on its tokenizer and on the text before.

    Raises:
        ValueError: There is none.
    """
    spellings = [space + word for space in ("", " ") for word in (answer, answer.capitalize(), answer.upper())]
    encoded = [tokenizer.encode(spelling, add_special_tokens=False) for spelling in spellings]
    single = sorted({ids[0] for ids in encoded if len(ids) == 1})
    tokens = [token for token in single if tokenizer.decode([token]).strip().casefold() == answer]  # not "unknown"
    if not tokens:
        raise ValueError(f'its tokenizer has no token for "{answer}", so the answer cannot be read from one token.')
    return tokens


def special_texts(processor: ProcessorMixin) -> list[str]:
    """Returns the texts that stand for special tokens, and for a sound, in a prompt."""
    added = [token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special]
    named = [getattr(processor, f"audio{part}_token", None) for part in ("", "_bos", "_eos")]
    return [text for text in dict.fromkeys([*added, *named]) if text]


def choose_questions(chosen: Sequence[str], special: Sequence[str] = ()) -> list[str]:
    """
    Returns the texts of questions, each with `{caption}` where a caption goes.

    Args:
        chosen (sequence of `str`): Names of `QUESTIONS`, or questions themselves.
        special (sequence of `str`): Texts that no question may contain.

    Raises:
        ValueError: There is none, one has no place for the caption, or one spells a special token.
    """
    if not chosen:
        raise ValueError("There is no question: name one, or leave the choice to the program.")
    questions = [QUESTIONS.get(question, question) for question in chosen]
    for question in questions:
        if PLACE not in question:
            raise ValueError(f"The question {question!r} has no {PLACE} and is none of {', '.join(QUESTIONS)}.")
        _check_spelling(f"The question {question!r}", question, special)
    return questions


def _check_spelling(what: str, text: str, special: Sequence[str]) -> None:
    for spelled in special:
        if spelled in text:
            raise ValueError(f"{what} spells {spelled}, which the model would take for a sign of its own.")


def check_processor(processor: Any) -> None:
    """
    Checks that a processor takes sounds and turns conversations into prompts.

    Raises:
        ValueError: It does not; the message begins in small letters, for the model's name to go before it.
    """
    extractor = getattr(processor, "feature_extractor", None)
    if extractor is None or not hasattr(processor, "tokenizer"):
        raise ValueError("its processor has no feature extractor, so the model takes no sound.")
    if not isinstance(getattr(extractor, "sampling_rate", None), int):
        raise ValueError("its feature extractor names no sampling rate, so no sound can be brought to it.")
    if not processor.chat_template:
        raise ValueError("its processor has no chat template, so the question cannot be put into a conversation.")


def window_seconds(processor: ProcessorMixin) -> float:
    """Returns the longest sound that a processor takes without cutting it."""
    longest = getattr(processor, "max_audio_len", None) or getattr(processor.feature_extractor, "chunk_length", None)
    return longest or WINDOW_SECONDS


class LanguageModelPipeline(JudgePipeline):
    """
    Scores sounds against captions by asking an audio language model, and is called like its parent.

    The score is P(yes) / (P(yes) + P(no)) for the next token after the question, where the probabilities of all tokens
    that say the same are added up ([`answer_tokens`]); with several questions, the mean of their scores. A sound that
    is longer than the processor takes is asked about window by window, and the mean counts, weighted by length.

    Prompts of a batch are padded on the right, which no token before can see in a causal model: a score does not
    depend on its batch. The logits of the answers are computed in float32 even if the model is not.

    Args:
        model (`PreTrainedModel`): A model of one of the `LOADERS`; of one that speaks, its `thinker` is used.
        processor (`ProcessorMixin`): Its processor, with feature extractor, tokenizer and chat template.
        questions (sequence of `str`): Names of `QUESTIONS`, or questions with `{caption}` in them.
        map_score (`bool`): Return 10 times the share, on 0-10, instead of the share in [0, 1].
        kwargs: Arguments of `transformers.Pipeline`, such as `device`.

    Raises:
        ValueError: The processor does not serve, or a question has no place for the caption.
    """

    own_scale = "yes / (yes + no)"

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        questions: Sequence[str] = DEFAULT_QUESTIONS,
        map_score: bool = False,
        **kwargs: Any,
    ):
        check_processor(processor)
        model = getattr(model, "thinker", model)
        self.special = special_texts(processor)
        self.questions = choose_questions(questions, self.special)
        self.answers = [answer_tokens(processor.tokenizer, answer) for answer in ANSWERS]
        self.map_score, self.compute_dtype = map_score, model.dtype
        self.window_samples = round(window_seconds(processor) * processor.feature_extractor.sampling_rate)
        super().__init__(model=model, processor=processor, task="audio-text-alignment", **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        processor: str | Path | None = None,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ) -> "LanguageModelPipeline":
        """
        Loads a judge.

        Args:
            name_or_path (`str` or `Path`): Folder or Hub id of an audio language model, of a type in `LOADERS`.
            processor (`str` or `Path`, *optional*): Folder or Hub id of the processor, by default the model's own.
            revision (`str`, *optional*): Hub revision of the model, and of the processor if it is the model's own.
            dtype (`torch.dtype`): Type of the weights, which the model computes in.
            kwargs: Arguments of the constructor.

        Raises:
            ValueError: It cannot be loaded, or cannot be asked; the message names it and says why.
        """
        source = (processor,) if processor else (name_or_path, revision)
        own = load_part(AutoProcessor, *source)
        try:
            check_processor(own)
            choose_questions(kwargs.get("questions", DEFAULT_QUESTIONS), special_texts(own))
            answers = [answer_tokens(own.tokenizer, answer) for answer in ANSWERS]  # before gigabytes are loaded
        except ValueError as error:
            raise ValueError(f"{source[0]}: {error}") from error
        logger.info(f"{name_or_path}: answers are read from the tokens {answers}.")
        loader = LOADERS[load_part(AutoConfig, name_or_path, revision).model_type]
        return cls(load_model(loader, name_or_path, revision, dtype=dtype), own, **kwargs)

    @property
    def settings(self) -> dict[str, Any]:
        """Returns what the parent returns, the questions, the answers' tokens, and the form of the conversation."""
        template = {"chat_template": self.processor.chat_template}
        return {**super().settings, "questions": self.questions, "answers": self.answers, **template}

    def tokenize(self, caption: str) -> tuple[str, list[str]]:
        """
        Returns the caption itself, and no notes: no caption is cut.

        Raises:
            TypeError: The caption is not a string.
            ValueError: It is empty, or spells a special token.
        """
        super().tokenize(caption)
        _check_spelling(f"The caption {caption!r}", caption, self.special)
        return caption, []

    def _load(self, *args: Any) -> tuple[torch.Tensor, list[tuple[int, int]], list[str]]:
        """Loads a waveform `(samples,)` at the model's rate; returns it with its windows, and notes."""
        waveform, spans, notes = super()._load(*args)
        rate = self.processor.feature_extractor.sampling_rate
        if len(waveform) < SHORTEST_SOUND * rate:
            notes.append(f"padded: {len(waveform) / rate:.6g} s to {SHORTEST_SOUND:g} s")
        return waveform, spans, notes

    def _forward(self, items: list[dict[str, Any]], pass_size: int = SMALLEST_PASS) -> list[torch.Tensor]:
        """
        Ask every question about every window and caption, `pass_size` of them at a time.

        Returns:
            A `torch.Tensor` of shape `(num_windows, num_captions)` for each input.
        """
        asked = [
            (item["waveform"][start:end], question.replace(PLACE, caption))
            for item in items
            for start, end in item["spans"]
            for caption in item["captions"]
            for question in self.questions
        ]
        with evaluation_mode(self.model):
            shares = torch.cat([self._ask(asked[at : at + pass_size]) for at in range(0, len(asked), pass_size)])
        shapes = [(len(item["spans"]), len(item["captions"]), len(self.questions)) for item in items]
        parts = shares.split([windows * captions * questions for windows, captions, questions in shapes])
        means = [part.view(shape).mean(dim=-1) for part, shape in zip(parts, shapes, strict=True)]  # -> (W, C)
        return [10 * mean if self.map_score else mean for mean in means]

    def _ask(self, asked: list[tuple[torch.Tensor, str]]) -> torch.Tensor:
        """Returns the share of yes for each waveform `(samples,)` and question: `(num_asked,)`, float32 on the CPU."""
        inputs = self.processor.apply_chat_template(
            [self._conversation(waveform, question) for waveform, question in asked],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            # Of the text alone: sounds are padded as the processor does by itself.
            processor_kwargs={"text_kwargs": {"padding": True, "padding_side": "right"}, "return_tensors": "pt"},
        ).to(self.model.device, self.model.dtype)
        logits = self._next_logits(inputs).log_softmax(dim=-1)  # (B, V)
        yes, no = (logits[:, tokens].logsumexp(dim=-1) for tokens in self.answers)  # -> (B,)
        if torch.logaddexp(yes, no).max().exp() < SMALLEST_SHARE:
            logger.warning_once(
                "The model gives yes and no together less than 1 % of the probability: it would say something else, "
                "and its scores may mean little. Another question, or a model tuned to answer, may help."
            )
        return (yes - no).sigmoid().cpu()

    def _conversation(self, waveform: torch.Tensor, question: str) -> list[dict[str, Any]]:
        """Returns what a user says who shows a sound `(samples,)` and asks a question."""
        shortest = round(SHORTEST_SOUND * self.processor.feature_extractor.sampling_rate)
        sound = pad(waveform, (0, max(0, shortest - len(waveform)))).cpu().numpy()
        return [{"role": "user", "content": [{"type": "audio", "audio": sound}, {"type": "text", "text": question}]}]

    def _next_logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """
        Returns the logits `(batch_size, vocabulary)`, float32, of the token after each prompt.

        Hooks around the output layer hand it the last state of each prompt only, because those of all positions would
        fill the memory and not every model takes `logits_to_keep`, and compute the answers' logits in float32, because
        in bfloat16 many scores would be equal. What a model does with logits afterwards, it does with these.
        """
        mask = inputs["attention_mask"]
        rows, last = torch.arange(len(mask), device=mask.device), mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
        tokens = [token for ids in self.answers for token in ids]

        def keep_last(head: nn.Linear, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            return (args[0][rows, last].unsqueeze(1),)  # (B, T, D) -> (B, 1, D)

        def in_float32(head: nn.Linear, args: tuple[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
            logits = logits.float()
            bias = None if head.bias is None else head.bias[tokens].float()
            logits[..., tokens] = linear(args[0].float(), head.weight[tokens].float(), bias)  # (B, 1, D) -> (B, 1, A)
            return logits

        head = self.model.get_output_embeddings()
        hooks = [head.register_forward_pre_hook(keep_last), head.register_forward_hook(in_float32)]
        try:
            return self.model(**inputs, use_cache=False).logits.squeeze(1).float()
        finally:
            for hook in hooks:
                hook.remove()
