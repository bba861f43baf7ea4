"""Export and import of models as folders that Hugging Face's `transformers` reads; it is not needed here.

hugging_face.py     config and weights in the layout of `transformers`, both ways
layout.py           what is peculiar to an architecture there; gpt2.py, llama.py and nanochat.py say it of each
tokenizer_files.py  the tokenizer as files, and that of a folder
card.py             the model card
folder.py           a folder that appears only when complete, and replaces nothing but an earlier export
export.py           write a checkpoint as such a folder
take_in.py          read such a folder as the checkpoint from which a training starts
benchmark.py        lm-evaluation-harness on an exported checkpoint
"""
