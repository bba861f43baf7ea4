"""Export of models for Hugging Face's `transformers` and for llama.cpp, neither needed here, and import of the former.

hugging_face.py     weights in the layout of `transformers`, both ways; model/config_json.py has their config
layout.py           names and shapes of the weights there; gpt2.py says what GPT-2 has in its own way
tokenizer_files.py  the tokenizer as files, and that of a folder
chat_template.py    questions and answers in the form of the documents, for transformers
card.py             the model card
gguf.py             weights as a GGUF file; gguf_tokenizer.py has its tokenizer, ollama.py the Modelfile
folder.py           a folder that appears only when complete, and replaces nothing but an earlier export
export.py           write a checkpoint as such a folder
push.py             upload it to the hub
import_model.py     read such a folder as the checkpoint from which a training starts
benchmark.py        lm-evaluation-harness on an exported checkpoint
"""
