"""nanochat's model (Karpathy 2025): rotary positions, norms without parameters, also after the embedding and of queries
and keys, ReLU squared (So et al. 2021), output projections that begin at zero, soft-capped logits, no biases.

Shapes: B batch, T tokens of this call, C channels, H query heads, G key and value heads, D channels of a head.
"""

from __future__ import annotations

from torch import Tensor, nn

from gpt_pipeline.model.activations import relu_squared
from gpt_pipeline.model.attention import KVCache, Visible, positions_of, visible_to
from gpt_pipeline.model.blocks import Blocks
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.dropout import Dropout
from gpt_pipeline.model.language_model import INIT_STD, LanguageModel
from gpt_pipeline.model.linear import Linear
from gpt_pipeline.model.norms import rms_norm
from gpt_pipeline.model.rotary import Angles, rotary_angles
from gpt_pipeline.model.rotary_attention import RotaryAttention


class Attention(RotaryAttention):
    """Queries and keys are normalised after they are turned."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.eps = config.eps

    def turned(self, x: Tensor, angles: Angles) -> Tensor:
        """Return queries or keys [B, H or G, T, D] as they meet each other."""
        return rms_norm(super().turned(x, angles), eps=self.eps)


class MLP(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Two matrices with the square of a ReLU between."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.n_embd, config.mlp_channels, bias=False)
        self.fc2 = Linear(config.mlp_channels, config.n_embd, bias=False)
        self.dropout = Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        return self.dropout(self.fc2(relu_squared(self.fc1(x))))


class Block(nn.Module):  # type: ignore[misc]
    """One layer: attention and MLP, each on a normalised copy of the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.eps = config.eps
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, angles: Angles, cache: KVCache | None = None, mask: Visible = None) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        x = x + self.self_attn(rms_norm(x, eps=self.eps), angles, cache, mask)
        return x + self.mlp(rms_norm(x, eps=self.eps))


class Transformer(nn.Module):  # type: ignore[misc]
    """The embedding and blocks, between two norms."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.drop = Dropout(config.drop_rate)
        self.layers = Blocks(Block(config, layer) for layer in range(config.n_layer))

    def forward(self, ids: Tensor, cache: KVCache | None = None, starts: Tensor | None = None) -> Tensor:
        """Ids [B, T] -> final hidden states [B, T, C]."""
        config = self.config
        mask = visible_to(ids, cache, starts)
        positions = positions_of(ids, cache, starts)
        angles = rotary_angles(positions, head_size=config.head_size, base=config.rope_theta, clockwise=True)
        x = self.drop(rms_norm(self.embed_tokens(ids), eps=config.eps))
        x = self.layers(x, angles, cache, mask)
        return rms_norm(x, eps=config.eps)


class NanoChat(LanguageModel):
    """A model as nanochat trains it, as `NanoChatForCausalLM`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.model = Transformer(config)
        self.lm_head = self._make_head()
        self._initialise()

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding [V, C]."""
        return self.model.embed_tokens

    def hidden(self, ids: Tensor, cache: KVCache | None = None, starts: Tensor | None = None) -> Tensor:
        """[B, T] -> [B, T, C]."""
        return self.model(ids, cache, starts)

    def _initialise(self) -> None:
        """Zero for what writes into the residual stream and for an untied head, 1/sqrt(inputs) for the others.

        The scale of the embedding does not show, since a norm follows it.
        """
        for name, parameter, role in self.roles():
            if role == "head" or name.endswith(("o_proj.weight", "fc2.weight")):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=INIT_STD if role == "embedding" else parameter.size(1) ** -0.5)
