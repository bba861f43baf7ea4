"""Measurements that anyone can repeat. Each prints ratios taken side by side in one run; docs/benchmarks.md lists them.

contest.py        contestants in processes of their own, taking turns
steps.py          one step of our trainer, and what it is made of
peers.py          the same step with transformers
nanogpt_style.py  the same step as a plain loop
synth_set.py      files like SYNTH's, of any size
gpu_proof/        all that is owed of a GPU, in calls of a few minutes
"""
