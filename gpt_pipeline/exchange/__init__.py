"""Export and import of models as folders that Hugging Face's `transformers` reads; it is not needed here.

hugging_face.py     weights in the layout of `transformers`, both ways; model/config_json.py has their config
layout.py           names and shapes of the weights there; gpt2.py says what GPT-2 has in its own way
tokenizer_files.py  the tokenizer as files, and that of a folder
chat_template.py    questions and answers in the form of the documents, for transformers
card.py             the model card
folder.py           a folder that appears only when complete, and replaces nothing but an earlier export
export.py           write a checkpoint as such a folder
take_in.py          read such a folder as the checkpoint from which a training starts
benchmark.py        lm-evaluation-harness on an exported checkpoint
"""
