"""Peaks by the names that drivers report."""

from __future__ import annotations

import pytest

from gpt_pipeline.hardware.peaks import peak_flops


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("Tesla T4", 65),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-32GB", 112),
        ("Tesla V100S-PCIE-32GB", 130),
        ("NVIDIA A2", 18),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA A16", 17.9),
        ("NVIDIA A30", 165),
        ("NVIDIA A40", 149.7),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA RTX A2000 12GB", 31.9),
        ("Quadro RTX 6000", 130.5),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA RTX 4000 Ada Generation", 106.9),
        ("NVIDIA RTX 4000 SFF Ada Generation", 76.7),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 503.8),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA H20", 148),
        ("NVIDIA B200", 2250),
        ("NVIDIA B300 SXM6 AC", 2250),
        ("NVIDIA GB200", 2500),
        ("AMD Instinct MI210", 181),
        ("AMD Instinct MI250", 181.05),
        ("AMD Instinct MI250X", 191.5),
        ("AMD Instinct MI300X", 1307.4),
        ("AMD Instinct MI300A", 980.6),
        ("AMD Instinct MI325X", 1307.4),
        ("AMD Instinct MI355X", 2516.6),
    ],
)
def test_peak_by_the_driver_s_name_is_that_of_the_data_sheet(name, tera):
    assert peak_flops(name) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    ("name", "tera"),
    [  # as the white papers print them, for products added up in float32
        ("GeForce RTX 2080 Ti", 53.8),
        ("NVIDIA GeForce RTX 2080 SUPER", 44.6),
        ("NVIDIA GeForce RTX 3070", 40.6),
        ("NVIDIA GeForce RTX 3080", 59.5),
        ("NVIDIA GeForce RTX 3090", 71.2),
        ("NVIDIA GeForce RTX 3090 Ti", 80.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4080 SUPER", 104.4),
        ("NVIDIA GeForce RTX 5080", 112.6),
        ("NVIDIA GeForce RTX 5090", 209.5),
    ],
)
def test_peak_of_a_geforce_from_cores_and_clock_is_that_of_the_white_paper(name, tera):
    assert peak_flops(name) == pytest.approx(tera * 1e12, rel=2e-3)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "GeForce RTX 2080 with Max-Q Design",
        "NVIDIA GeForce RTX 3050 6GB",
        "NVIDIA GeForce GTX 1660 Ti",
        "NVIDIA GeForce RTX 9090",
        "NVIDIA RTX A4000 Laptop GPU",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "GRID A100-10C",
        "NVIDIA A40-48Q",
        "Tesla V100-DGXS-32GB",
        "Tesla P100-PCIE-16GB",
        "NVIDIA A100X",
        "AMD Instinct MI250X/MI250",
        "Apple M3 Max",
        "",
    ],
)
def test_peak_of_another_card_than_those_known_is_unknown(name):
    assert peak_flops(name) is None
