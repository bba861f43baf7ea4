"""Checkpoints served over HTTP by OpenAI's interface, and the page on which they answer a question side by side.

models.py      which checkpoints are served, under which names
batch.py       texts of one model that are written together, a token each at a time
engine.py      the thread that owns the models: its queue and its limits
written.py     from tokens to text: whole characters, stop strings, reasoning and answer
chat.py        a conversation as the prompt of a training, and what ends an answer
requests.py    what may be asked, and how each misuse is refused
writing.py     one request on its way: its texts, its time, its client
bodies.py      what is answered, in OpenAI's form
app.py         the addresses, the key, the errors
talk.py        the page, its questions and their marks
server.py      a port, signals, the end
"""
