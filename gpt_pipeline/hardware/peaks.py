"""How many FLOP/s a GPU's matrix units can do at most, by the name that its driver gives it. Imports no torch.

All figures are dense (no structured sparsity), for products of bf16 or fp16 numbers that are added up in float32, as
torch does. Where a sheet prints the figure with sparsity only, it is halved.

Sources:
    Data center, NVIDIA: the data sheet of each product (T4, V100, A2, A10, A16, A30, A40, A100, L4, L40, L40S, H100,
        H200, H20), HGX B200 and B300, GB200 and GB300 NVL72; A10G from the table of AWS's G5 instances.
    Workstation, NVIDIA: the data sheets of RTX A2000 to A6000 and RTX 2000 to 6000 Ada Generation; the Turing
        architecture white paper for Quadro RTX, TITAN RTX; the RTX PRO Blackwell white paper.
    GeForce: cores and boost clock of the reference card, from its product page. How much of that is matrix products:
        "NVIDIA Turing GPU Architecture", appendix A; "NVIDIA Ampere GA102 GPU Architecture", "NVIDIA Ada GPU
        Architecture" and "NVIDIA RTX Blackwell GPU Architecture", appendix A. These cards add up in float32 at half the
        speed of adding up in float16; the half is what counts here.
    Instinct, AMD: the data sheet of each product. MI250 and MI250X are two devices each, which halves the figure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_T = 1e12

# By what stands in the name as words of their own; of several that do, the one with most words.
_PROFESSIONAL: Mapping[str, float] = {
    # Turing and Volta have no bf16: of fp16 alone.
    "T4": 65,
    "T4G": 65,
    "V100 SXM2": 125,
    "V100 PCIE": 112,
    "V100S PCIE": 130,
    "TITAN V": 110,
    "TITAN RTX": 130.5,
    "Quadro RTX 8000": 130.5,
    "Quadro RTX 6000": 130.5,
    "Quadro RTX 5000": 89.2,
    "Quadro RTX 4000": 57,
    # Ampere
    "A2": 18,
    "A10": 125,
    "A10G": 70,
    "A16": 17.9,
    "A30": 165,
    "A40": 149.7,
    "A100": 312,
    "A800": 312,
    "RTX A2000": 31.9,
    "RTX A4000": 76.7,
    "RTX A4500": 94.6,
    "RTX A5000": 111.1,
    "RTX A5500": 136.4,
    "RTX A6000": 154.8,
    # Ada
    "L4": 121,
    "L20": 119.5,
    "L40": 181,
    "L40S": 362,
    "RTX 2000 Ada": 48,
    "RTX 4000 Ada": 106.9,
    "RTX 4000 SFF Ada": 76.7,
    "RTX 4500 Ada": 158.5,
    "RTX 5000 Ada": 261.1,
    "RTX 6000 Ada": 364.2,
    # Hopper
    "H100": 989.4,
    "H100 PCIe": 756,
    "H100 NVL": 835.5,
    "H800": 989.4,
    "H800 PCIe": 756,
    "H200": 989.4,
    "H200 NVL": 835.5,
    "GH200": 989.4,
    "H20": 148,
    # Blackwell
    "B100": 1750,
    "B200": 2250,
    "B300": 2250,
    "GB200": 2500,
    "GB300": 2500,
    "RTX PRO 6000 Blackwell Workstation": 503.8,
    # AMD
    "MI210": 181,
    "MI250": 362.1 / 2,
    "MI250X": 383 / 2,
    "MI300A": 980.6,
    "MI300X": 1307.4,
    "MI325X": 1307.4,
    "MI355X": 2516.6,
}

# Cores, and the boost clock in MHz.
_GEFORCE: Mapping[str, tuple[int, int]] = {
    "RTX 2060": (1920, 1680),
    "RTX 2060 SUPER": (2176, 1650),
    "RTX 2070": (2304, 1620),
    "RTX 2070 SUPER": (2560, 1770),
    "RTX 2080": (2944, 1710),
    "RTX 2080 SUPER": (3072, 1815),
    "RTX 2080 Ti": (4352, 1545),
    "RTX 3050": (2560, 1777),
    "RTX 3060": (3584, 1777),
    "RTX 3060 Ti": (4864, 1665),
    "RTX 3070": (5888, 1725),
    "RTX 3070 Ti": (6144, 1770),
    "RTX 3080": (8704, 1710),
    "RTX 3080 Ti": (10240, 1665),
    "RTX 3090": (10496, 1695),
    "RTX 3090 Ti": (10752, 1860),
    "RTX 4060": (3072, 2460),
    "RTX 4060 Ti": (4352, 2535),
    "RTX 4070": (5888, 2475),
    "RTX 4070 SUPER": (7168, 2475),
    "RTX 4070 Ti": (7680, 2610),
    "RTX 4070 Ti SUPER": (8448, 2610),
    "RTX 4080": (9728, 2505),
    "RTX 4080 SUPER": (10240, 2550),
    "RTX 4090": (16384, 2520),
    "RTX 4090 D": (14592, 2520),
    "RTX 5050": (2560, 2572),
    "RTX 5060": (3840, 2497),
    "RTX 5060 Ti": (4608, 2572),
    "RTX 5070": (6144, 2512),
    "RTX 5070 Ti": (8960, 2452),
    "RTX 5080": (10752, 2617),
    "RTX 5090": (21760, 2407),
}
_MULTIPROCESSOR_FLOPS = 512  # in a cycle
_TURING_CORES, _LATER_CORES = 64, 128  # of a multiprocessor

# What bears the name of a card and is slower: chips of laptops, a part of one card, a share of its time.
_OTHERS = re.compile(r"laptop|max-q|mig|grid|\d+[abcq]", re.IGNORECASE)
_MAKERS = {"NVIDIA", "GeForce"}


def peak_flops(name: str) -> float | None:
    """Return the FLOP/s of the matrix units, dense, in bf16 or fp16; None where no data sheet is known here.

    `name` is as the driver has it, such as `NVIDIA A100-SXM4-80GB` or `Tesla T4`.
    """
    words = [word for word in re.split(r"[\s/]+|-(?!Q\b)", name) if word]
    if any(_OTHERS.fullmatch(word) for word in words):
        return None
    if "GeForce" in words:
        return _geforce_flops(" ".join(word for word in words if word not in _MAKERS))
    lower = [word.casefold() for word in words]
    found = {known: len(known.split()) for known in _PROFESSIONAL if _is_part(known.casefold().split(), lower)}
    longest = [known for known, length in found.items() if length == max(found.values())]
    return _PROFESSIONAL[longest[0]] * _T if len(longest) == 1 else None


def _geforce_flops(card: str) -> float | None:
    if card not in _GEFORCE:
        return None
    cores, clock = _GEFORCE[card]
    multiprocessors = cores / (_TURING_CORES if card.startswith("RTX 20") else _LATER_CORES)
    return multiprocessors * _MULTIPROCESSOR_FLOPS * clock * 1e6


def _is_part(part: list[str], words: list[str]) -> bool:
    """Whether `words` have those of `part` among them, one behind the other."""
    return any(words[start : start + len(part)] == part for start in range(len(words)))
