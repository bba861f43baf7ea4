"""What the architectures have in common: from ids to logits or to a loss, with and without a cache.

Each architecture is a file of its own beside this one. Parameters bear the names of its class in `transformers`,
matrices as `nn.Linear` keeps them, [out, in]. With a tied head there is no `lm_head.weight`.

Shapes: B batch, T tokens of this call, N tokens, C channels, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from gpt_pipeline.model.attention import KVCache
from gpt_pipeline.model.blocks import Blocks
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.linear import Linear, linear
from gpt_pipeline.model.loss import soft_capped, summed_loss

INIT_STD = 0.02  # GPT-2's, and what everyone has used since

Role = Literal["embedding", "head", "matrix", "vector"]


class LanguageModel(nn.Module, ABC):  # type: ignore[misc]  # torch is not followed by the type checker
    """A causal language model; its initial weights come from torch's global random number generator."""

    several_in_one: ClassVar[Mapping[str, int]] = {}
    """Parameters that hold several matrices of one shape on top of each other: how many, by the end of their name."""

    lm_head: Linear | None
    """The output matrix; None where it is the embedding's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.loss_piece: int | None = None
        """Tokens whose logits are in memory together when a loss is computed; None: all."""

    @property
    @abstractmethod
    def embedding(self) -> nn.Embedding:
        """The token embedding [V, C]."""

    @abstractmethod
    def hidden(self, ids: Tensor, cache: KVCache | None = None, starts: Tensor | None = None) -> Tensor:
        """Return the final, normalised hidden states [B, T, C] of `ids` [B, T], after the positions of `cache`.

        `starts` [B, T]: where in its row the document of each token begins; it sees nothing of those before. None: all.
        """

    def recompute_blocks(self, wanted: bool) -> None:
        """Have the blocks compute their activations again in the backward pass instead of keeping them, or not."""
        for module in self.modules():
            if isinstance(module, Blocks):
                module.recompute = wanted

    @property
    def num_parameters(self) -> int:
        """Parameters, a tied matrix counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def head_weight(self) -> Tensor:
        """The output matrix [V, C]."""
        return self.embedding.weight if self.lm_head is None else self.lm_head.weight

    def roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """Yield the name of each parameter, the parameter, and what it is: a tied matrix is an embedding."""
        embeddings = {id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding)}
        for name, parameter in self.named_parameters():
            if id(parameter) in embeddings:
                yield name, parameter, "embedding"
            elif parameter is self.head_weight:
                yield name, parameter, "head"
            else:
                yield name, parameter, "vector" if parameter.dim() < 2 else "matrix"

    def logits(self, x: Tensor) -> Tensor:
        """Hidden states [..., C] -> logits [..., V]."""
        return soft_capped(linear(x, self.head_weight), self.config.soft_cap)

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """Return logits [B, T, V] for `ids` [B, T]; with `targets` [B, T] the loss, summed over tokens, in nats.

        `weights` [B, T] says how much each target counts; None: all the same, 1. Weights [S, B, T] give S sums of the
        same losses, without gradients. `starts`: see `hidden`. A sum, not a mean: micro-batches and ranks add up, and
        the caller divides once by the weight of all targets of the update.

        Raises:
            ValueError: more tokens than the model has positions.
        """
        T = ids.size(1)
        if self.config.context_length < T:
            raise ValueError(f"found {T} tokens, need at most context_length={self.config.context_length}")
        x = self.hidden(ids, starts=starts)
        if targets is None:
            return self.logits(x)
        return summed_loss(
            x.flatten(0, 1),
            self.head_weight,
            targets.flatten(),
            None if weights is None else weights.flatten(-2),
            padded_vocab_size=self.config.padded_vocab_size,
            piece=self.loss_piece,
            soft_cap=self.config.soft_cap,
        )

    def forward_cached(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Append `ids` [B, T] to the cached positions; return the logits [B, V] after the last of them.

        The first call takes the (left-padded) prompts, each later one the B tokens chosen, as [B, 1]. Call it in eval
        mode and without gradients.
        """
        return self.logits(self.hidden_cached(ids, cache)[:, -1])

    def hidden_cached(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Append `ids` [B, T] to the cached positions; return their final hidden states [B, T, C]."""
        x = self.hidden(ids, cache)
        cache.length += ids.size(1)
        return x

    def _make_head(self) -> Linear | None:
        config = self.config
        return None if config.tie_weights else Linear(config.n_embd, config.vocab_size, bias=False)
