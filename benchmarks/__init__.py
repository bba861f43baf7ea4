"""Measurements that anyone can repeat. Each prints ratios taken side by side in one run.

cpu_step          a step of our trainer against transformers' GPT-2, on the CPU
cuda_step         the same on a GPU, against a plain nanoGPT-style loop too, and what each technique contributes
checkpoint_stall  how long training stands still for a checkpoint
optimizers        Muon against AdamW at equal tokens
contest.py        contestants in processes of their own, taking turns
steps.py          one step of our trainer, and what it is made of
"""
