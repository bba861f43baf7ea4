"""A model as a GGUF file, which llama.cpp and what is built on it (Ollama, LM Studio) read.

The package `gguf` is an optional extra. Shapes: C channels, H heads, D channels of a head.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpt_pipeline.errors import UserError
from gpt_pipeline.exchange.gguf_tokenizer import GgufTokenizer
from gpt_pipeline.model.config import ModelConfig

if TYPE_CHECKING:
    import gguf
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Dtype = Literal["f32", "f16", "bf16", "q8_0"]
"""In which the matrices are kept; biases, gains and learned positions are always float32."""

MODEL_NAME = "model.gguf"

_FILE_TYPES: Mapping[Dtype, str] = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
}
_BLOCK = 32  # channels that share a scale in q8_0
_LARGEST_F16 = 65504.0
_POSITIONS = "position_embd.weight"  # looked up and added, as llama.cpp's own converter keeps it


def require_gguf(model: ModelConfig) -> None:
    """Check that a GGUF of this model can be written here.

    Raises:
        UserError: llama.cpp has no such architecture, or the package `gguf` is not installed.
    """
    if model.architecture == "nanochat":
        raise UserError(
            "--format gguf: found model.architecture: nanochat, need gpt2 or llama: llama.cpp does not compute "
            "nanochat's blocks (ReLU squared, normalised queries and keys, capped logits); use --format hf"
        )
    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            "--format gguf needs the package gguf, which is not installed; in the project's clone run: "
            "pip install -c constraints.txt -e '.[gguf]'"
        )


def write_gguf(
    path: Path,
    weights: Mapping[str, Tensor],
    model: ModelConfig,
    tokenizer: GgufTokenizer,
    *,
    name: str,
    dtype: Dtype,
) -> None:
    """Write our `weights` of a GPT-2 or a LLaMA; the same ones give the same bytes.

    Raises:
        UserError: a weight is too large for float16.
    """
    import gguf

    writer = gguf.GGUFWriter(path, arch=model.architecture)
    _add_facts(writer, model, name=name, dtype=dtype)
    tokenizer.add_to(writer, ids=model.vocab_size)
    names = gguf.get_tensor_name_map(_architecture(model), model.n_layer)
    for ours, values in _matrices(weights, model):
        stem, dot, end = ours.rpartition(".")
        theirs = f"{names.get_name(stem)}{dot}{end}"
        kind = _kind(theirs, values, dtype)
        if kind.name == "F16":
            _require_float16(ours, values)
        writer.add_tensor(theirs, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _architecture(model: ModelConfig) -> gguf.MODEL_ARCH:
    import gguf

    return {"gpt2": gguf.MODEL_ARCH.GPT2, "llama": gguf.MODEL_ARCH.LLAMA}[model.architecture]


def _add_facts(writer: gguf.GGUFWriter, model: ModelConfig, *, name: str, dtype: Dtype) -> None:
    import gguf

    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(model.vocab_size)
    writer.add_context_length(model.context_length)
    writer.add_embedding_length(model.n_embd)
    writer.add_block_count(model.n_layer)
    writer.add_feed_forward_length(model.mlp_channels)
    writer.add_head_count(model.n_head)
    writer.add_head_count_kv(model.kv_heads)
    if model.architecture == "gpt2":
        writer.add_layer_norm_eps(model.eps)
    else:
        writer.add_layer_norm_rms_eps(model.eps)
        writer.add_rope_dimension_count(model.head_size)
        writer.add_rope_freq_base(model.rope_theta)


def _matrices(weights: Mapping[str, Tensor], model: ModelConfig) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield each weight that llama.cpp wants, [out, in], by our name; a tied head is not repeated."""
    import numpy as np

    for name, tensor in weights.items():
        values = tensor.float().numpy()
        if name.endswith("self_attn.q_proj.weight"):
            values = _interleaved(values, model.n_head)
        elif name.endswith("self_attn.k_proj.weight"):
            values = _interleaved(values, model.kv_heads)
        yield name, values
        if name.endswith("attn.c_attn.weight") and not model.qkv_bias:  # llama.cpp requires one
            yield name.replace("weight", "bias"), np.zeros(3 * model.n_embd, np.float32)


def _interleaved(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return rows [H * D, C] in the order that llama.cpp's rotation of a LLaMA wants.

    There, channels 2i and 2i + 1 of a head are one plane; here, channel i of its first half and i of its second.
    """
    rows, channels = values.shape
    return values.reshape(heads, 2, rows // heads // 2, channels).swapaxes(1, 2).reshape(rows, channels)


def _kind(name: str, values: NDArray[np.float32], dtype: Dtype) -> gguf.GGMLQuantizationType:
    import gguf

    if values.ndim == 1 or name == _POSITIONS:
        return gguf.GGMLQuantizationType.F32
    if dtype == "q8_0" and values.shape[-1] % _BLOCK:
        return gguf.GGMLQuantizationType.F16  # rows that are no whole blocks
    return gguf.GGMLQuantizationType[dtype.upper()]


def _require_float16(name: str, values: NDArray[Any]) -> None:
    largest = float(abs(values).max(initial=0.0))
    if largest > _LARGEST_F16:
        raise UserError(
            f"{name}: found a weight of {largest:.4g}, need at most {_LARGEST_F16:.0f}, the largest float16; "
            "use --dtype bf16 or f32"
        )
