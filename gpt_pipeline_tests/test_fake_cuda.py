"""Each operation of a forward pass, of an update and of generation on pretended CUDA tensors, without a GPU.

Under torch's FakeTensorMode operations compute devices, dtypes and shapes and no numbers: what mixes the host's tensors
with the GPU's raises as it would on one. It needs torch for CUDA, which pip installs on Linux. The backward pass
asks the driver and cannot run so; kernels are not run, and their limits (head sizes, alignment) not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gpt_pipeline.hardware import devices
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.attention import KVCache
from gpt_pipeline.model.config import Architecture, ModelConfig
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.training.config import TrainingConfig
from gpt_pipeline.training.device import Compute
from gpt_pipeline.training.loss_scale import LossScale, is_overflow
from gpt_pipeline.training.optimizer import Optimizer

T = 16
CUDA = torch.device("cuda", 0)

pytestmark = pytest.mark.skipif(
    torch.version.cuda is None or torch.cuda.is_available(), reason="needs torch for CUDA, and no GPU"
)

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product")


class _OnePrecision(TorchDispatchMode):
    """Refuses products of numbers of different dtypes, as kernels do and pretended tensors do not."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__.startswith(_PRODUCTS):
            found = {each.dtype for each in args if isinstance(each, torch.Tensor) and each.dtype != torch.bool}
            assert len(found) == 1, f"{func}: {found}"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fake(monkeypatch) -> Iterator[None]:
    """Pretend CUDA's tensors; autocast, which is off where there is no GPU, works as on one with both halves."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    with FakeTensorMode(), _OnePrecision(), torch.no_grad():
        yield


def _model(architecture: str, **changes) -> LanguageModel:
    config = ModelConfig(
        architecture=architecture, n_layer=2, n_head=2, n_embd=32, context_length=T, vocab_size=100, **changes
    )
    with CUDA:
        return make_model(config)


def _compute(precision: str) -> Compute:
    return Compute(device=CUDA, precision=precision, compile=False, peak_flops=None)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_loss_on_fake_cuda_stays_on_the_device_and_in_float32(fake, architecture, precision):
    for dropout, divided, piece in ((0.0, False, None), (0.1, False, 8), (0.0, True, 8), (0.1, True, None)):
        model = _model(architecture, dropout=dropout)
        model.loss_piece = piece
        ids = torch.zeros((3, T), dtype=torch.int64, device=CUDA)
        more = (torch.ones((3, T), device=CUDA), ids) if divided else (None, None)
        with _compute(precision).autocast():
            loss = model(ids, ids, *more)
            assert torch.is_autocast_enabled("cuda") == (precision != "fp32")
        assert (loss.device, loss.dtype, loss.shape) == (CUDA, torch.float32, ())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_generation_on_fake_cuda_keeps_its_cache_in_the_precision_of_products(fake, architecture, precision):
    model = _model(architecture).eval()
    ids = torch.zeros((2, 5), dtype=torch.int64, device=CUDA)
    cache = KVCache(model.config, capacity=8, padding=torch.zeros(2, dtype=torch.int64, device=CUDA))
    with _compute(precision).autocast():
        for some in (ids, ids[:, :1]):
            logits = model.forward_cached(some, cache)
    assert (logits.device, logits.shape) == (CUDA, (2, 100))
    assert cache._layers[0][0].dtype == devices.DTYPES[precision]


@pytest.mark.parametrize("half", ["bf16", "fp16", None])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_update_on_fake_cuda_keeps_weights_and_state_in_float32(fake, monkeypatch, optimizer, half):
    monkeypatch.setattr(devices, "native_half", lambda device: half)
    model = _model("gpt2")
    update = Optimizer(model, TrainingConfig(optimizer=optimizer))
    scale = LossScale(CUDA)
    for step in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()]) / scale.value
        overflow = is_overflow(norm, norm, scale.value)
        update.step(step, 1e-3, divisor=norm.clamp_min(1.0) * scale.value, skip=overflow.float())
        scale.update(overflow)
    tensors = [*model.parameters(), *scale.state().values()]
    tensors += [
        tensor for part in update.state()["states"] for each in part["state"].values() for tensor in each.values()
    ]
    assert {(tensor.device, tensor.dtype) for tensor in tensors} == {(CUDA, torch.float32)}


def test_fake_cuda_finds_tensors_of_the_host_and_products_of_two_precisions(fake):
    on_gpu = torch.ones(2, 2, device=CUDA)
    with pytest.raises(RuntimeError, match="device"):
        on_gpu @ torch.ones(2, 2)
    with pytest.raises(AssertionError, match="mm"):
        on_gpu @ on_gpu.bfloat16()
