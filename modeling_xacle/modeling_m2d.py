"""
Audio encoder of M2D-CLAP 2025 (arXiv 2503.22104): log-mel spectrogram -> patch tokens and one semantic token, built
from its description alone.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from .configuration_m2d import M2dConfig
from .modeling_beats import check_spectrograms


def vit_layers(config: M2dConfig, num_layers: int, num_heads: int) -> nn.Sequential:
    """Makes layers of a vision transformer (arXiv 2010.11929, section 3.1): each norm is before what it normalises."""
    settings = {
        "dim_feedforward": config.intermediate_size,
        "dropout": config.hidden_dropout,
        "activation": config.hidden_act,
        "layer_norm_eps": config.layer_norm_eps,
        "batch_first": True,
        "norm_first": True,
    }
    return nn.Sequential(
        *(nn.TransformerEncoderLayer(config.hidden_size, num_heads, **settings) for _ in range(num_layers))
    )


class M2dModel(PreTrainedModel):
    """
    A vision transformer on spectrograms, with a class token and learned positions, and layers that gather its patches
    in one semantic token. Padding counts as silence. Its own folder format is the only one: the layout of published
    weights is not known here.
    """

    config: M2dConfig
    base_model_prefix = "model"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    _no_split_modules = ["TransformerEncoderLayer"]
    _supports_sdpa = True

    def __init__(self, config: M2dConfig):
        super().__init__(config)
        size, norm_eps = config.hidden_size, config.layer_norm_eps
        self.patch_embedding = nn.Conv2d(1, size, config.patch_size, stride=config.patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, size))
        self.position_embedding = nn.Parameter(torch.empty(1, config.max_patches, size))
        self.layers = vit_layers(config, config.num_hidden_layers, config.num_attention_heads)
        self.layer_norm = nn.LayerNorm(size, eps=norm_eps)
        self.semantic_token = nn.Parameter(torch.empty(1, 1, size))
        self.semantic_layers = vit_layers(config, config.num_semantic_layers, num_heads=1)
        self.semantic_layer_norm = nn.LayerNorm(size, eps=norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """A vision transformer's initialisation: weights, tokens and positions are normal, biases zero."""
        super()._init_weights(module)
        normal = []
        if isinstance(module, nn.MultiheadAttention):
            normal = [module.in_proj_weight]
            init.zeros_(module.in_proj_bias)
        elif isinstance(module, M2dModel):
            normal = [module.class_token, module.position_embedding, module.semantic_token]
        for weight in normal:
            init.normal_(weight, std=self.config.initializer_range)

    @can_return_tuple
    def forward(self, input_features: torch.Tensor) -> BaseModelOutputWithPooling:
        """
        Encode.

        Args:
            input_features (`torch.Tensor` of shape `(batch_size, num_frames, num_mel_bins)`): Log-mel spectrogram of
                [`M2dFeatureExtractor`], of at most `max_frames`.

        Returns:
            `BaseModelOutputWithPooling` with `last_hidden_state`, the patches, of shape `(batch_size, num_patches,
            hidden_size)`, and `pooler_output`, the semantic token, of shape `(batch_size, hidden_size)`. Patches run
            over time first: `num_mel_bins // patch_size` neighbours share one time step. 10 s (1001 frames) give
            62 * 5 = 310 patches.

        Raises:
            ValueError: The input has another shape or is too long.
        """
        config = self.config
        check_spectrograms(input_features, config.num_mel_bins, config.patch_size, "M2dFeatureExtractor")
        patches = self.patch_embedding(input_features.to(self.dtype).unsqueeze(1))  # (B, T, F) -> (B, D, T/16, F/16)
        patches = patches.flatten(2).transpose(1, 2)  # -> (B, N, D)
        num_patches = patches.shape[1]
        if num_patches > config.max_patches:
            raise ValueError(
                f"input_features has {input_features.shape[1]} frames, but there are positions for {config.max_frames} "
                "only: set the feature extractor's max_seconds to less."
            )
        patches = patches + self.position_embedding[:, :num_patches]
        states = self.layers(self._behind(self.class_token, patches))  # -> (B, 1 + N, D)
        states = self.layer_norm(states[:, 1:])  # -> (B, N, D)
        gathered = self.semantic_layers(self._behind(self.semantic_token, states))[:, 0]  # -> (B, D)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.semantic_layer_norm(gathered))

    @staticmethod
    def _behind(token: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Puts a token `(1, 1, D)` before the states of each clip: `(B, N, D)` -> `(B, 1 + N, D)`."""
        return torch.cat([token.expand(len(states), -1, -1), states], dim=1)


__all__ = ["M2dModel"]
