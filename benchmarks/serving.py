"""Requests that come together: written in one batch, against one after the other.

Both are the server's own engine, with the same weights and requests in one process, taking turns; only how many texts
it writes at a time differs. Prompts and answers differ in length, so texts leave and join all the time.

    python -m benchmarks.serving --threads 1
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Sequence

import torch

from benchmarks.contest import describe_machine
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.serving.batch import End, Event, Failure, Text
from gpt_pipeline.serving.engine import Engine

_CONTEXT = 1024


def make_texts(count: int, *, prompt_tokens: int, new_tokens: int, done: threading.Semaphore) -> list[Text]:
    """Return requests of random tokens, half to one and a half times as long as given, that tell `done` their end."""
    generator = torch.Generator().manual_seed(count)

    def about(size: int) -> int:
        return int(torch.randint(max(1, size // 2), 3 * size // 2 + 1, (1,), generator=generator))

    def tell(event: Event) -> None:
        if isinstance(event, Failure):
            raise RuntimeError(event.reason)
        if isinstance(event, End):
            done.release()

    return [
        Text(
            prompt=tuple(torch.randint(0, 50_000, (about(prompt_tokens),), generator=generator).tolist()),
            limit=about(new_tokens),
            ends=frozenset(),
            tell=tell,
        )
        for _ in range(count)
    ]


def seconds_of(model: LanguageModel, count: int, *, batch_size: int, prompt_tokens: int, new_tokens: int) -> float:
    """Return how long `count` requests take that come at once."""
    done = threading.Semaphore(0)
    texts = make_texts(count, prompt_tokens=prompt_tokens, new_tokens=new_tokens, done=done)
    with Engine({"model": model}, batch_size=batch_size, queue_size=count) as engine:
        began = time.perf_counter()
        engine.submit("model", texts)
        for _ in range(count):
            done.acquire()
        return time.perf_counter() - began


def new_tokens_of(count: int, *, prompt_tokens: int, new_tokens: int) -> int:
    """Return how many tokens the requests ask for."""
    texts = make_texts(count, prompt_tokens=prompt_tokens, new_tokens=new_tokens, done=threading.Semaphore(0))
    return sum(text.limit for text in texts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(arguments)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    device = devices.find_gpu() or "cpu"
    model = (
        make_model(ModelConfig(n_layer=given.layers, context_length=_CONTEXT)).eval().requires_grad_(False).to(device)
    )
    sizes = {"prompt_tokens": given.prompt_tokens, "new_tokens": given.new_tokens}
    print(describe_machine())
    print(f"prompts of about {given.prompt_tokens} tokens, about {given.new_tokens} new ones each\n")
    print("requests  one by one  together  tokens/s        together is x times as fast")
    for count in given.requests:
        seconds_of(model, count, batch_size=given.batch_size, **sizes)
        times: dict[int, list[float]] = {1: [], given.batch_size: []}
        for turn in range(given.turns):
            for batch_size in [*times] if turn % 2 == 0 else reversed([*times]):
                times[batch_size].append(seconds_of(model, count, batch_size=batch_size, **sizes))
        alone, together = (statistics.median(each) for each in times.values())
        speed = new_tokens_of(count, **sizes) / together
        print(
            f"{count:>8}  {alone:>8.2f} s  {together:>6.2f} s  {speed:>8,.0f}        {alone / together:.2f}", flush=True
        )


if __name__ == "__main__":
    main()
