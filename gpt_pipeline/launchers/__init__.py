"""Where a training runs that is not a child of the step: engines that take a job, keep it and say how it is.

`protocol` says what an engine must provide, `submission` keeps which job a training was handed to, `config` has the
keys of the experiment file. Each engine is a module of its own. Nothing here imports Dagster or torch.
"""
