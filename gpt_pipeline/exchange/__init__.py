"""Models given away and taken in, as folders that Hugging Face's `transformers` reads; it is not needed here.

hugging_face.py     GPT-2 as `transformers` lays it out: config and weights, both ways
tokenizer_files.py  the tokenizer as files, and whether a folder's tokenizer is ours
card.py             the model card
folder.py           a folder that appears complete, and never in place of what is not an earlier export
export.py           a checkpoint as such a folder
take_in.py          such a folder as the checkpoint from which a training starts
benchmark.py        lm-evaluation-harness on an exported checkpoint
"""
