"""Whether this machine can do the work: small looks at one thing each, and what to do where something is wrong.

finding.py      what a look finds: ok, note or problem, with a remedy
examination.py  all of them, one after the other
python.py       Python, and the libraries against what is needed
torch_build.py  torch, the GPU and its driver, the compiler (imports torch when it looks)
machine.py      disk, memory, open files
files.py        what the file system of a folder can do
hub.py          the Hugging Face hub and its token
ports.py        the ports of the web pages, and who has them
stores.py       Dagster's history, `DAGSTER_HOME`, MLflow's store
show.py         the findings as text and as JSON
"""
