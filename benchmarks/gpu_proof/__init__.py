"""All that is owed of a GPU, in calls of a few minutes: `python3 -m benchmarks.gpu_proof`.

__main__.py   the command: what is done, what fits into this call
record.py     tasks, and what came of them: results.json and results.md
setup.py      the device and the sizes, and small ones for a CPU
trainer.py    the trainer as a process, as people run it

The parts, each a list of tasks. What is first to know of each runs before the others, which follow part by part:

checks.py     1  the checks of gpt_pipeline_tests/gpu_checks.py
speed.py      2  a step against a plain loop and transformers, and what each technique contributes
resume.py     3  kill -9 and resume; the same bits in a fixed order of sums, and what that costs
stall.py      4  how long training waits for a checkpoint
memory.py     5  memory against the estimate; memory that is full
processes.py  6  the same under torchrun
recipes.py    7  loss against tokens; text.py makes the shards
"""
