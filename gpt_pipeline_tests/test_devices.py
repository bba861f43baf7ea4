"""Which device is chosen, and how it computes. The GPUs are pretended: torch's answers about them, not their work."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from gpt_pipeline.doctor.software import check_torch
from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.evaluation.sampling import Draws, Sampling
from gpt_pipeline.hardware import devices
from gpt_pipeline.planning.device import choose_device
from gpt_pipeline.training import optimizer as optimizers
from gpt_pipeline.training.config import HardwareConfig, TrainingConfig, step_layout
from gpt_pipeline.training.device import (
    Compute,
    choose_compute,
    explained_order_of_sums,
    explained_out_of_memory,
    prepare_process,
)
from gpt_pipeline.training.muon import orthogonalized
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.seeds import random_states, restore_random_states
from gpt_pipeline_tests.training_jobs import VOCABULARY, make_job, run

AUTO = HardwareConfig()
_FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"


@pytest.fixture
def pretend(monkeypatch):
    """Return a function after which torch says that this machine has GPUs of a kind."""

    def has(kind, *, count=1, name="a GPU", capability=(9, 0), architecture=None, macos=(15, 0), **properties):
        found = SimpleNamespace(gcnArchName=architecture, has_fp64=True, has_bfloat16_conversions=True)
        vars(found).update(properties)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device(kind))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
        monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
        monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
        monkeypatch.setattr(torch.version, "hip", "7.0" if architecture else None)
        for module in (torch.cuda, torch.xpu):
            monkeypatch.setattr(module, "get_device_name", lambda device: name)
            monkeypatch.setattr(module, "get_device_properties", lambda device: found)
            monkeypatch.setattr(module, "mem_get_info", lambda device: (6 * 10**9, 8 * 10**9))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.backends.mps, "get_name", lambda: name)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *wanted: macos >= wanted)
        monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * 10**9)
        monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 10**9)

    return has


def _choose(hardware=AUTO, **training) -> Compute:
    return choose_compute(hardware, TrainingConfig(**training), ranks=Ranks(), say=lambda _: None)


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_device_auto_finds_the_gpu_whatever_its_maker(pretend, kind):
    pretend(kind)
    assert _choose().device.type == kind
    assert _choose(HardwareConfig(device=kind)).device.type == kind
    assert _choose(HardwareConfig(device="cpu")).device.type == "cpu"


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_device_that_is_not_here_is_refused_with_what_is(pretend, kind):
    other = "mps" if kind == "cuda" else "cuda"
    pretend(kind)
    with pytest.raises(ConfigError, match=rf"hardware\.device: found '{other}'.*sees {kind}.*auto or cpu"):
        _choose(HardwareConfig(device=other))


def test_rank_without_a_gpu_of_its_own_is_told_how_many_there_are(pretend):
    pretend("xpu", count=2)
    assert choose_compute(AUTO, TrainingConfig(), ranks=Ranks(local_rank=1), say=print).device == torch.device("xpu:1")
    with pytest.raises(ConfigError, match=r"hardware\.num_gpus: found 3, need at most 2"):
        choose_compute(AUTO, TrainingConfig(), ranks=Ranks(local_rank=2), say=print)


@pytest.mark.parametrize(
    ("kind", "says", "precision"),
    [
        ("cuda", {"capability": (12, 0)}, "bf16"),
        ("cuda", {"capability": (9, 0)}, "bf16"),
        ("cuda", {"capability": (8, 0)}, "bf16"),
        ("cuda", {"capability": (7, 5), "name": "Tesla T4"}, "fp16"),
        ("cuda", {"capability": (7, 5), "name": "NVIDIA GeForce RTX 2060"}, "fp16"),
        ("cuda", {"capability": (7, 5), "name": "Quadro RTX 4000"}, "fp16"),
        ("cuda", {"capability": (7, 5), "name": "NVIDIA GeForce GTX 1660 SUPER"}, "fp32"),  # no tensor cores
        ("cuda", {"capability": (7, 5), "name": "NVIDIA GeForce MX450"}, "fp32"),
        ("cuda", {"capability": (7, 5), "name": "NVIDIA T1000 8GB"}, "fp32"),
        ("cuda", {"capability": (7, 0)}, "fp16"),  # V100
        ("cuda", {"capability": (6, 1)}, "fp32"),
        ("cuda", {"architecture": "gfx90a:sramecc+:xnack-"}, "bf16"),
        ("cuda", {"architecture": "gfx942:sramecc+:xnack-"}, "bf16"),
        ("cuda", {"architecture": "gfx950"}, "bf16"),
        ("cuda", {"architecture": "gfx1100"}, "bf16"),
        ("cuda", {"architecture": "gfx1030"}, "fp32"),
        ("cuda", {"architecture": "gfx906"}, "fp32"),
        ("xpu", {}, "bf16"),
        ("xpu", {"has_bfloat16_conversions": False}, "fp32"),
        ("mps", {}, "fp32"),
    ],
)
def test_precision_auto_is_one_that_the_chip_itself_multiplies_in(pretend, kind, says, precision):
    pretend(kind, **says)
    compute = _choose()
    assert compute.precision == precision
    assert compute.device.type == kind
    products = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    assert devices.products_dtype(compute.device) == products


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("cuda", {"capability": (7, 5), "name": "Tesla T4"}),
        ("cuda", {"architecture": "gfx1030", "name": "AMD Radeon RX 6800"}),
        ("mps", {"macos": (13, 7), "name": "Apple M1"}),
        ("xpu", {"has_bfloat16_conversions": False, "name": "Intel GPU"}),
    ],
)
def test_precision_bf16_on_a_chip_that_would_emulate_it_is_refused(pretend, kind, says):
    pretend(kind, **says)
    with pytest.raises(ConfigError, match=rf"training\.precision: found 'bf16'.*{says['name']}.*fp16 or fp32"):
        _choose(precision="bf16")
    assert _choose(precision="fp16").precision == "fp16"


def test_precision_bf16_is_had_where_macos_has_it_and_on_every_cpu(pretend):
    pretend("mps")
    assert _choose(precision="bf16").precision == "bf16"
    assert _choose(HardwareConfig(device="cpu"), precision="bf16").precision == "bf16"


def test_precision_fp16_on_a_cpu_is_had_with_a_word():
    said: list[str] = []
    training, cpu = TrainingConfig(precision="fp16"), HardwareConfig(device="cpu")
    assert choose_compute(cpu, training, ranks=Ranks(), say=said.append).precision == "fp16"
    assert ["slower than in fp32" in text for text in said] == [True]


def test_peak_is_of_16_bits_only(pretend):
    pretend("cuda", name="NVIDIA H100 80GB HBM3")
    assert _choose().peak_flops == 989.4e12
    assert _choose(precision="fp32").peak_flops is None


@pytest.mark.parametrize(("kind", "ahead", "piece"), [("cuda", 1, 8192), ("xpu", 1, 8192), ("mps", 0, 8192)])
def test_only_a_gpu_with_events_runs_ahead_of_the_host(pretend, kind, ahead, piece):
    pretend(kind)
    compute = _choose(compile=False)
    assert (compute.updates_in_flight, compute.loss_piece) == (ahead, piece)


def test_model_on_an_apple_gpu_is_compiled_only_if_asked_for(pretend):
    pretend("mps")
    assert not _choose().compile
    assert _choose(compile=True).compile


@pytest.mark.parametrize(("kind", "total", "free"), [("cuda", 8, 6), ("xpu", 8, 6), ("mps", 12, 11)])
def test_plan_knows_the_memory_of_each_kind_of_gpu(pretend, kind, total, free):
    pretend(kind, name="the GPU")
    device = choose_device(AUTO, TrainingConfig(compile=False))
    assert (device.memory_total, device.memory_free) == (total * 10**9, free * 10**9)
    assert device.description.startswith("the GPU")
    with pytest.raises(ConfigError, match=r"hardware\.num_gpus: found 2, need at most 1"):
        choose_device(HardwareConfig(num_gpus=2), TrainingConfig(compile=False))


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_doctor_names_each_kind_of_gpu_and_what_does_not_fit_it(pretend, kind):
    pretend(kind, name="the GPU")
    torch_itself, gpu = check_torch(AUTO)
    assert (torch_itself.severity, gpu.severity) == ("ok", "ok")
    assert "the GPU" in gpu.text
    other = "mps" if kind == "cuda" else "cuda"
    *_, wrong = check_torch(HardwareConfig(device=other))
    assert wrong.severity == "problem"
    assert f"hardware.device: auto or {kind}" in str(wrong.remedy)


@pytest.mark.parametrize(("kind", "backends"), [("cuda", "cpu:gloo,cuda:nccl"), ("xpu", "cpu:gloo,xpu:xccl")])
def test_processes_talk_through_the_library_of_the_gpus_maker(pretend, kind, backends):
    pretend(kind)
    assert devices.collective_backends() == backends


def test_random_states_of_an_apple_gpu_round_trip_and_are_left_out_elsewhere(pretend, monkeypatch):
    state = torch.arange(4, dtype=torch.uint8)
    taken: list[torch.Tensor] = []
    with monkeypatch.context() as here:
        here.setattr(torch.mps, "get_rng_state", lambda: state)
        here.setattr(torch.mps, "set_rng_state", taken.append)
        pretend("mps")
        kept = random_states()
        restore_random_states(kept)
    assert [*map(torch.Tensor.tolist, taken)] == [state.tolist()]
    assert kept["cuda"] == []  # which earlier versions read
    monkeypatch.undo()
    restore_random_states(kept)


@pytest.mark.parametrize("has_fp64", [True, False])
def test_training_without_float64_on_the_device_estimates_the_same_losses(tmp_path, monkeypatch, has_fp64):
    monkeypatch.setattr(devices, "has_float64", lambda device: has_fp64)
    job = make_job(tmp_path)
    estimates = [record["val_loss"] for record in run(job).records if record["kind"] == "validation"]
    assert estimates == pytest.approx([math.log(VOCABULARY)] * len(estimates), abs=0.2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizer_scales_by_itself_where_the_kernel_does_not(tmp_path, monkeypatch, optimizer):
    job = make_job(tmp_path, training={"optimizer": optimizer, "gradient_clip": 0.01})
    by_kernel = run(job).records
    monkeypatch.setattr(optimizers.devices, "scales_in_optimizer", lambda device: False)
    by_hand = run(dataclasses.replace(job, experiment_folder=str(tmp_path / "by_hand"))).records
    for found, expected in zip(by_hand, by_kernel, strict=True):
        name = "train_loss" if expected["kind"] == "train" else "val_loss"
        assert found[name] == pytest.approx(expected[name], rel=1e-5)


def test_muon_in_fp16_makes_tiny_gradients_orthogonal_too(monkeypatch):
    gradients = torch.randn(2, 16, 48, generator=torch.Generator().manual_seed(0)) * 1e-8  # zeros in fp16
    in_bf16 = orthogonalized(gradients)
    monkeypatch.setattr(devices, "products_dtype", lambda device: torch.float16)
    in_fp16 = orthogonalized(gradients)
    assert in_fp16.dtype == torch.float16
    torch.testing.assert_close(in_fp16.float(), in_bf16.float(), atol=0.05, rtol=0.05)


def test_out_of_memory_of_an_apple_gpu_is_told_with_its_remedy():
    training = TrainingConfig(batch_size=4)
    layout = step_layout(training, max_length=16, steps_per_epoch=1, world_size=1)
    with (
        pytest.raises(UserError, match=r"set training\.micro_batch_size: 2"),
        explained_out_of_memory(layout, training),
    ):
        raise RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB, max allowed: 18.13 GB).")


@pytest.fixture
def undone():
    """Put back what fixing the order of sums changes in this process."""
    environment, cudnn = dict(os.environ), torch.backends.cudnn.deterministic
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cudnn.deterministic = cudnn
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.parametrize("deterministic", [True, False])
def test_order_of_sums_is_fixed_on_a_gpu_if_asked_for(pretend, undone, deterministic):
    pretend("cuda", name="the GPU")
    compute = _choose(compile=False, deterministic=deterministic)
    prepare_process(compute)
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert (os.environ.get("CUBLAS_WORKSPACE_CONFIG") == ":4096:8") == deterministic
    assert compute.describe().endswith("deterministic") == deterministic


def test_order_of_sums_on_a_cpu_needs_nothing(undone):
    compute = _choose(HardwareConfig(device="cpu"), deterministic=True)
    prepare_process(compute)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "deterministic" not in compute.describe()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems keep their ways with memory")
@pytest.mark.parametrize("same_sizes", [True, False])
def test_process_keeps_large_blocks_that_it_frees_only_where_sizes_stay_the_same(same_sizes):
    program = (
        "import psutil, torch\n"
        "from gpt_pipeline.training.device import Compute, prepare_process\n"
        "compute = Compute(device=torch.device('cpu'), compile=False, peak_flops=None)\n"
        f"prepare_process(compute, same_sizes={same_sizes})\n"
        "before = psutil.Process().memory_info().rss\n"
        "torch.ones(32 << 20)\n"
        "print(psutil.Process().memory_info().rss - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    kept = int(done.stdout) > 100 << 20  # of the 128 MB
    assert kept == same_sizes


def test_operation_without_a_fixed_order_is_named(undone):
    torch.use_deterministic_algorithms(True)
    with (
        pytest.raises(UserError, match=r"training\.deterministic: found put_.*deterministic: false"),
        explained_order_of_sums(),
    ):
        torch.zeros(4).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    with pytest.raises(RuntimeError, match="something else"), explained_order_of_sums():
        raise RuntimeError("something else")


def test_draws_with_a_fixed_order_are_the_same_tokens(undone):
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    draws = Draws(["a", "b", "c"], Sampling(), length=4)
    free = draws.choose(logits, [0, 1, 2], [0, 1, 2])
    torch.use_deterministic_algorithms(True)
    assert torch.equal(draws.choose(logits, [0, 1, 2], [0, 1, 2]), free)


@pytest.mark.parametrize(("platform", "fallback"), [("darwin", "1"), ("linux", "None")])
def test_what_apple_gpus_lack_falls_back_to_the_cpu(platform, fallback):
    code = f"import sys, os; sys.platform = {platform!r}; import gpt_pipeline; print(os.environ.get({_FALLBACK!r}))"
    environment = {name: value for name, value in os.environ.items() if name != _FALLBACK}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == fallback
