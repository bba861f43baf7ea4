"""Copies of finished work in object storage: sent in the background, brought by a machine that lacks them.

address.py     the mirror that `storage.mirror` names: kinds of stores, what is refused
store.py       a store's objects: put, get, list, remove, and create only if absent
parts.py       large objects in parts, of which those that are there are not sent again
names.py       where things lie in a mirror
lease.py       one writer at a time for each training, in numbered terms
order.py       what an experiment has in its folder for the mirror: what is to be sent, how far that is
send.py        one piece of work at a time: what is finished here and not there yet
agent.py       the background process that sends; `python -m gpt_pipeline.mirror.agent FOLDER`
bring.py       stages and trainings from the mirror, checked byte by byte
check.py       whether a mirror can be reached, written and read, and grants leases
"""
