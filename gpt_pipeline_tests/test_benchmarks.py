"""The benchmarks' commands run, on models small enough for a test."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.recipes import rates_beyond_edge, share_needed

ROOT = Path(__file__).parents[1]
_TINY = """
experiment_name: tiny
data: {source: sample, num_samples: 300, tokenizer: {train: 512}, max_length: 16}
model: {n_layer: 1, n_head: 2, n_embd: 32, context_length: 16, dropout: 0.0}
training: {batch_size: 2, max_steps: 8, warmup_steps: 0}
storage: {base_folder: storage}
hardware: {device: cpu}
"""
_ARGUMENTS = {
    "cpu_step": "--layers 1 --length 32 --turns 1 --threads 1 --eager-only",
    "cpu_products": "--turns 1",
    "sft_step": "--layers 1 --width 48 --length 32 --turns 1 --threads 1",
    "rollouts": "--layers 1 --width 64 --prompts 2 --samples 2 --new-tokens 3 --threads 1",
    "cuda_step": "--tiny --turns 1 --steps 2",
    "checkpoint_stall": "--layers 1 --width 64 --length 16 --sequences 1 --saves 2 --steps 1 --device cpu",
    "mirror_stall": "--layers 1 --width 64 --length 16 --sequences 1 --sends 2 --steps 2 --device cpu",
    "muon": "--layers 1 --width 32 --turns 1",
    "recipes": "{experiment} --results {folder}/runs.jsonl --seeds 1 --turns 1 --only GPT-2,\\ Muon\\ as\\ it\\ was",
    "tokens": "--rows 2000 --turns 1",
    "batches": "--tokens 3000000 --read-bytes 1e6 --turns 1",
    "english": "--rows 3000 --turns 1 --workers 1",
    "data_memory": "--small 1000 --large 2000",
    "near_duplicates": "--rows 1000",
    "own_data": "--rows 3000 --turns 1 --workers 1",
    "scale": "--experiments 2 --checkpoints 2 --files 10 --runs 2 --partitions 2 --listed 10 --times 2",
    "serving": "--layers 1 --requests 3 --new-tokens 3 --turns 1 --threads 1",
}


@pytest.mark.parametrize("module", _ARGUMENTS)
@pytest.mark.slow
def test_benchmark_prints_a_ratio(module, tmp_path):
    experiment = tmp_path / "tiny.yaml"
    experiment.write_text(_TINY, encoding="utf-8")
    filled = shlex.split(_ARGUMENTS[module].format(experiment=experiment, folder=tmp_path))
    command = [sys.executable, "-m", f"benchmarks.{module}", *filled]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr
    assert re.search(r"ratio|times as fast", result.stdout, re.IGNORECASE), result.stdout


@pytest.mark.parametrize(
    ("losses", "further"),
    [
        ({2.0: 3.0, 4.0: 2.0, 8.0: 2.5}, []),
        ({2.0: 1.0, 4.0: 2.0, 8.0: 2.5}, [1.0]),
        ({2.0: 3.0, 4.0: 2.0, 8.0: 1.5}, [16.0]),
        ({1.0: 1.5, 2.0: 1.0, 4.0: 2.0, 8.0: math.inf}, []),
    ],
)
def test_grid_of_learning_rates_is_widened_until_its_best_is_inside(losses, further):
    assert rates_beyond_edge(losses) == further


def test_share_needed_lies_between_the_last_that_reaches_the_target_and_the_next() -> None:
    losses = {1.0: 2.0, 0.5: 2.2, 0.25: 2.4}
    assert share_needed(losses, 2.3) == pytest.approx(0.5 * 2**-0.5)
    assert share_needed(losses, 2.2) == pytest.approx(0.5)
    assert math.isnan(share_needed(losses, 1.9))
    assert share_needed(losses, 3.0) == 0.25
