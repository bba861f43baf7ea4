"""The one thread that owns the models: it takes texts from a queue and writes a token of each in turn.

One thread for all models, because several would compete for the same processors, and a model is no faster for it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from threading import Condition, Thread

from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.serving.batch import Batch, Failure, Text

_logger = logging.getLogger(__name__)


class QueueFullError(Exception):
    """There are as many texts waiting as may wait."""


class Engine:
    """Writes texts until it is closed; to be used as a context."""

    def __init__(self, models: Mapping[str, LanguageModel], *, batch_size: int, queue_size: int) -> None:
        """Write at most `batch_size` texts of a model at a time; `queue_size` more may wait."""
        self.queue_size = queue_size
        self._batch_size = batch_size
        self._batches = {name: Batch(model) for name, model in models.items()}
        self._waiting: dict[str, deque[Text]] = {name: deque() for name in models}
        self._changed = Condition()
        self._closed = False
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    def __enter__(self) -> Engine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, name: str, texts: Sequence[Text]) -> None:
        """Have the model `name` write these texts; they are told what happens from the engine's thread.

        Raises:
            QueueFullError: they would be too many in the queue.
        """
        with self._changed:
            if self.waiting + len(texts) > self.queue_size:
                raise QueueFullError
            if self._closed:
                for text in texts:
                    text.end(Failure(reason="the server is stopping"))
                return
            self._waiting[name].extend(texts)
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """Texts in the queue, of all models together; those that nobody wants any more do not count."""
        return sum(not text.cancelled for queue in self._waiting.values() for text in queue)

    @property
    def writing(self) -> int:
        """Texts that are being written."""
        return sum(map(len, self._batches.values()))

    def close(self) -> None:
        """End all texts and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (joining := self._next()) is not None:
            for name, batch in self._batches.items():
                if len(batch) or joining[name]:
                    self._advance(name, batch, joining[name])
        for batch in self._batches.values():
            batch.fail("the server is stopping")
        with self._changed:
            for queue in self._waiting.values():
                for text in queue:
                    text.end(Failure(reason="the server is stopping"))

    def _next(self) -> Mapping[str, Sequence[Text]] | None:
        """Wait for work; return the texts that join each batch, or None once the engine is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self.writing or any(self._waiting.values()))
            return None if self._closed else {name: self._joining(name) for name in self._batches}

    def _joining(self, name: str) -> Sequence[Text]:
        queue, free = self._waiting[name], self._batch_size - len(self._batches[name])
        joining: list[Text] = []
        while queue and len(joining) < free:
            text = queue.popleft()
            if not text.cancelled:
                joining.append(text)
        return joining

    def _advance(self, name: str, batch: Batch, joining: Sequence[Text]) -> None:
        try:
            batch.advance(joining)
        except Exception as error:  # whatever torch raises, out of memory above all: the next texts may fit again
            _logger.exception("%s failed; %d texts are lost", name, len(batch) + len(joining))
            batch.fail(f"the model failed: {type(error).__name__}")
