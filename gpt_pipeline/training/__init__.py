"""The trainer: one process (or one per GPU) that can be stopped and resumed at any step.

The loop and what it turns on, to be read in this order:
    run.py        one training from its job to its outcome
    trainer.py    the loop: update, validate, save, stop
    update.py     one optimizer update; optimizer.py, the learning rate, and AdamW and Muon together
    adamw.py      AdamW's updates; muon.py, Muon's; grouped.py, what they share
    feed.py       batches on the device; validate.py, the estimate of the validation loss
    state.py      the state of a training; seeds.py, the random generators; saver.py, its checkpoints
Around it:
    config.py     the `training:` and `hardware:` blocks, and the size of an update (no torch)
    job.py        what the trainer is asked to do, and what sets two jobs apart (no torch)
    decision.py   from where a training starts (no torch); start.py carries it out
    finished.py   `training.json` (no torch); heartbeat.py, the sign of life (no torch)
    metrics.py    `metrics.jsonl` (no torch); observer.py, who watches (no torch)
    device.py     precision, compilation, memory; ranks.py, several processes
    ray_driver.py what a job of a Ray cluster runs; ray_node.py, the trainers of one node
    supervise.py  a torchrun that leaves no trainer behind (no torch)
    stopping.py   signals and the watchdog; original.py, checkpoints of the original scripts
"""
