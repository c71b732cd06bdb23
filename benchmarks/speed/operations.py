"""
Counts the model's arithmetic from its config: the matrix products that make up a pass and a training step.

It counts the multiplications and additions of matrix products, attention and convolutions, two operations for each
multiply-add; norms, activations and softmax add less than one operation in a hundred. Causal attention counts as the
whole square.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from modeling_xacle.configuration_xacle import XacleConfig

# [AUDIO_START], [AUDIO_END] and [SCORE] come with the caption and the audio tokens.
SPECIAL_TOKENS = 3
FRAMES = 998  # in 10 s
FREQUENCIES = 257  # in a frame's spectrum


@dataclass(frozen=True)
class Product:
    """
    A matrix product `(rows, inner) @ (inner, columns)`, done `times` times.

    Args:
        part (`str`): Part of the model: `front_end`, `encoder`, `projector`, `language_model`, `score_head`, `lm_head`.
        kind (`str`): `linear`; or `filters`, `convolution`, `gate` and `attention`, which are not timed by themselves.
        rows (`int`), inner (`int`), columns (`int`): The shape.
        times (`int`): How often it is computed.
    """

    part: str
    kind: str
    rows: int
    inner: int
    columns: int
    times: int = 1

    @property
    def operations(self) -> int:
        """The number of multiplications and additions."""
        return 2 * self.rows * self.inner * self.columns * self.times


def total(products: Iterable[Product]) -> int:
    """Returns the operations of all products."""
    return sum(product.operations for product in products)


def weight_bytes(products: Iterable[Product]) -> int:
    """Returns the bytes of fp32 weights that linear layers read, each once, whatever its number of rows."""
    shapes = {(product.part, product.inner, product.columns, product.times, product.kind) for product in products}
    return sum(4 * inner * columns * times for _, inner, columns, times, kind in shapes if kind == "linear")


def encoder_products(config: XacleConfig, clips: int, frames: int = FRAMES) -> list[Product]:
    """Returns the products of encoding `clips` clips of `frames` frames."""
    audio = config.audio_config
    size, heads, layers = audio.hidden_size, audio.num_attention_heads, audio.num_hidden_layers
    tokens = (frames // audio.patch_size) * (audio.num_mel_bins // audio.patch_size)
    positions = tokens + (audio.conv_position_kernel_size + 1) % 2  # an even kernel gives one more, which is dropped
    group = size // audio.conv_position_groups
    rows, head = clips * tokens, size // heads

    linear = partial(Product, "encoder", "linear", rows)

    return [
        replace(linear(audio.patch_size**2, audio.patch_embedding_size), kind="convolution"),
        linear(audio.patch_embedding_size, size),
        Product("encoder", "convolution", clips * positions, group * audio.conv_position_kernel_size, size),
        linear(size, size, 4 * layers),
        Product("encoder", "gate", rows * heads, head, 8, layers),
        Product("encoder", "attention", tokens, head, tokens, 2 * layers * heads * clips),
        linear(size, audio.intermediate_size, layers),
        linear(audio.intermediate_size, size, layers),
    ]


def front_end_products(config: XacleConfig, clips: int, frames: int = FRAMES) -> list[Product]:
    """Returns the products of the mel filters for `clips` clips; the Fourier transforms are not counted."""
    return [Product("front_end", "filters", clips * frames, FREQUENCIES, config.audio_config.num_mel_bins)]


def audio_products(config: XacleConfig, clips: int, frames: int = FRAMES) -> list[Product]:
    """Returns the products from the waveforms of `clips` clips to audio features."""
    return [*front_end_products(config, clips, frames), *encoder_products(config, clips, frames)]


def projector_products(config: XacleConfig, clips: int) -> list[Product]:
    """Returns the products of projecting the pooled tokens of `clips` clips."""
    rows, inner = clips * config.num_audio_tokens, config.projector_intermediate_size
    audio, text = config.audio_config.hidden_size, config.text_config.hidden_size
    return [
        Product("projector", "linear", rows, audio, 2 * inner),
        Product("projector", "linear", rows, inner, text),
        Product("projector", "linear", rows, audio, text, 2),
    ]


def language_model_products(config: XacleConfig, pairs: int, length: int) -> list[Product]:
    """Returns the language model's products for `pairs` sequences of a length."""
    text = config.text_config
    size, layers, rows = text.hidden_size, text.num_hidden_layers, pairs * length
    head = size // text.num_attention_heads

    linear = partial(Product, "language_model", "linear", rows)
    attention_times = 2 * layers * text.num_attention_heads * pairs
    return [
        linear(size, size, 2 * layers),
        linear(size, text.num_key_value_heads * head, 2 * layers),
        Product("language_model", "attention", length, head, length, attention_times),
        linear(size, text.intermediate_size, 2 * layers),
        linear(text.intermediate_size, size, layers),
    ]


def head_products(config: XacleConfig, pairs: int) -> list[Product]:
    """Returns the products of reading `pairs` scores."""
    hidden, output = config.score_head_hidden_size, config.score_head_output_size
    sizes = [config.text_config.hidden_size, hidden, hidden, output, 1]
    return [Product("score_head", "linear", pairs, inner, columns) for inner, columns in pairwise(sizes)]


def lm_head_products(config: XacleConfig, rows: int) -> list[Product]:
    """Returns the products of predicting `rows` tokens."""
    return [Product("lm_head", "linear", rows, config.text_config.hidden_size, config.text_config.vocab_size)]


def text_products(config: XacleConfig, lengths: Sequence[int]) -> list[Product]:
    """Returns the language model's products, one pair per caption length in tokens; linear layers take all at once."""
    around = config.num_audio_tokens + SPECIAL_TOKENS
    sequences = [language_model_products(config, 1, length + around) for length in lengths]
    products = []
    for same in zip(*sequences, strict=True):
        together = [replace(same[0], rows=sum(product.rows for product in same))]
        products += together if same[0].kind == "linear" else same
    return products


def score_products(config: XacleConfig, lengths: Sequence[int]) -> list[Product]:
    """Returns the products from audio features to scores, for one pair per caption length in tokens."""
    pairs = len(lengths)
    return [*projector_products(config, pairs), *text_products(config, lengths), *head_products(config, pairs)]


def pair_products(
    config: XacleConfig, lengths: Sequence[int], captions: int = 1, frames: int = FRAMES
) -> list[Product]:
    """Returns the products from waveforms to scores, one pair per caption length; `captions` of them share a clip."""
    return [*audio_products(config, len(lengths) // captions, frames), *score_products(config, lengths)]


def step_products(
    config: XacleConfig,
    stage: int,
    lengths: Sequence[int],
    cached: bool = False,
    lora_rank: int = 0,
    frames: int = FRAMES,
) -> list[Product]:
    """
    Returns the products of a training step as published, for one pair per caption length: the projector is trained, in
    stage 1 with the language model (or adapters of it), in the others with the score head. Stage 1 predicts each token
    of a caption, and its end.

    A trained weight costs another product of the same size, and so does passing gradients on; attention needs two for
    that. The projector's linear path passes none on.
    """
    pairs = len(lengths)
    projector, text = projector_products(config, pairs), text_products(config, lengths)
    linear = [product for product in text if product.kind == "linear"]
    products = [] if cached else audio_products(config, pairs, frames)
    products += projector * 2 + [product for product in projector if product.times == 1]
    trains_text = stage == 1 and not lora_rank
    products += text * 2 + [product for product in text if trains_text or product.kind == "attention"]
    if stage == 1:
        products += lm_head_products(config, sum(lengths) + pairs) * (2 if lora_rank else 3)
    else:
        products += head_products(config, pairs) * 3
    if lora_rank:
        products += [adapter for product in linear for adapter in adapter_products(product, lora_rank)] * 3
    return products


def adapter_products(product: Product, rank: int) -> list[Product]:
    """Returns the forward products of the adapter beside a linear layer."""
    return [replace(product, columns=rank), replace(product, inner=rank)]
