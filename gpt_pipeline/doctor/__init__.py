"""Whether this machine can run the pipeline: small checks of one thing each, with a remedy where something is wrong.

examination.py  all of them, one after the other
software.py     Python and libraries, torch, the GPU and its driver, the compiler (imports torch when it checks)
machine.py      disk, memory, open files, file systems, ports
services.py     the Hugging Face hub; Dagster's history, `DAGSTER_HOME`, MLflow's store
show.py         the findings as lines and as JSON
"""
