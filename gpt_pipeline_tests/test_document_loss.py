from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN
from gpt_pipeline.errors import DamagedFileError
from gpt_pipeline.evaluation.document_loss import DocumentLoss, document_losses, loss_metrics
from gpt_pipeline.evaluation.held_out import HeldOutChoice, HeldOutDocument
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.language_model import LanguageModel

CONTEXT = 32


class Documents:
    """A split held in memory: documents of random tokens, each with its `<|endoftext|>`."""

    eot_token = EOT_TOKEN

    def __init__(self, lengths: Sequence[int], *, answer: int = 3) -> None:
        generator = torch.Generator().manual_seed(0)
        texts = [torch.randint(0, 50256, (length,), generator=generator).tolist() for length in lengths]
        self.tokens = np.array([token for text in texts for token in (EOT_TOKEN, *text)], dtype=np.uint16)
        ends = np.cumsum([len(text) + 1 for text in texts])
        self.document_starts = np.array([0, *ends[:-1]], dtype=np.int64)
        self.answer_starts = ends - answer
        self.n_tokens = len(self.tokens)

    def read(self, start: int, length: int) -> np.ndarray:
        return self.tokens[start : start + length]

    def text(self, number: int) -> list[int]:
        return np.split(self.tokens, self.document_starts[1:])[number].tolist()


def choice_of(stream: Documents) -> HeldOutChoice:
    numbers = range(len(stream.document_starts))
    documents = tuple(HeldOutDocument(number=n, exercise=("math exercise", "Editing!")[n % 2]) for n in numbers)
    return HeldOutChoice(documents=documents, available=len(documents))


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    return make_model(ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=CONTEXT, dropout=0.5))


def by_hand(model: LanguageModel, ids: list[int]) -> list[float]:
    """The nats of each token of `ids` but the first, one document alone."""
    model.eval()
    with torch.inference_mode():
        logits = model(torch.tensor([ids[:-1]]))[0]
    return F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").tolist()


def test_document_losses_equal_each_document_by_itself(model: LanguageModel) -> None:
    stream = Documents([9, 4, 30, 17])
    losses = document_losses(model, stream, choice_of(stream), context_length=CONTEXT)
    for number, loss in enumerate(losses):
        nats = by_hand(model, [*stream.text(number), EOT_TOKEN])
        assert (loss.n_tokens, loss.n_answer_tokens, loss.truncated) == (len(nats), 3, False)
        assert loss.nats == pytest.approx(sum(nats), rel=1e-5)
        assert loss.answer_nats == pytest.approx(sum(nats[-4:-1]), rel=1e-5)


def test_document_losses_are_the_same_at_any_batch_size_to_a_millionth(model: LanguageModel) -> None:
    stream = Documents(torch.randint(4, 60, (40,), generator=torch.Generator().manual_seed(1)).tolist())
    choice = choice_of(stream)
    alone, some, all_ = (
        loss_metrics(document_losses(model, stream, choice, context_length=CONTEXT, tokens_at_once=size))
        for size in (1, 100, 100_000)
    )
    assert some == pytest.approx(alone, rel=1e-6)
    assert all_ == pytest.approx(alone, rel=1e-6)


def test_document_losses_of_a_document_beyond_the_context_are_those_of_its_end_and_counted(
    model: LanguageModel,
) -> None:
    stream = Documents([100, 5])
    long, short = document_losses(model, stream, choice_of(stream), context_length=CONTEXT)
    nats = by_hand(model, [*stream.text(0), EOT_TOKEN][-(CONTEXT + 1) :])
    assert (long.truncated, short.truncated) == (True, False)
    assert long.n_tokens == CONTEXT
    assert long.nats == pytest.approx(sum(nats), rel=1e-5)
    assert long.answer_nats == pytest.approx(sum(nats[-4:-1]), rel=1e-5)
    assert loss_metrics([long, short])["documents_truncated"] == 1


def test_document_losses_of_an_answer_beyond_the_context_are_those_of_its_end(model: LanguageModel) -> None:
    stream = Documents([100], answer=90)
    (loss,) = document_losses(model, stream, choice_of(stream), context_length=CONTEXT)
    assert loss.n_answer_tokens == CONTEXT - 1  # and the <|endoftext|>, which is not the answer's
    assert loss.answer_nats < loss.nats


def test_document_losses_of_several_answers_are_those_of_all_of_them(model: LanguageModel) -> None:
    stream = Documents([9, 60])
    is_answer = np.random.default_rng(0).random(stream.n_tokens) < 0.4
    losses = document_losses(
        model, stream, choice_of(stream), context_length=CONTEXT, in_answers=lambda places: is_answer[places]
    )
    for number, loss in enumerate(losses):
        nats = by_hand(model, [*stream.text(number), EOT_TOKEN][-(CONTEXT + 1) :])
        end = ([*stream.document_starts.tolist(), stream.n_tokens])[number + 1]
        wanted = is_answer[end - len(nats) + 1 : end]
        assert loss.n_answer_tokens == wanted.sum()
        assert loss.answer_nats == pytest.approx(np.array(nats[:-1])[wanted].sum(), rel=1e-5)


def test_document_losses_on_other_shards_than_those_of_the_documents_are_refused(model: LanguageModel) -> None:
    stream = Documents([9, 4, 30, 17])
    fewer = HeldOutChoice(documents=choice_of(stream).documents[:2], available=3)
    with pytest.raises(DamagedFileError, match="found 4 documents in the validation shards, need the 3"):
        document_losses(model, stream, fewer, context_length=CONTEXT)


def test_loss_metrics_weigh_tokens_and_part_the_exercises() -> None:
    def loss(exercise: str, nats: float, n_tokens: int, answer: float) -> DocumentLoss:
        return DocumentLoss(
            exercise=exercise,
            nats=nats,
            n_tokens=n_tokens,
            answer_nats=answer,
            n_answer_tokens=2,
            truncated=False,
        )

    metrics = loss_metrics([loss("a b", 10.0, 5, 2.0), loss("a b", 2.0, 1, 4.0), loss("c", 9.0, 3, 6.0)])
    assert metrics == {
        "answer_loss": 12 / 6,
        "documents": 3,
        "documents_truncated": 0,
        "val_loss/a_b": 12 / 6,
        "answer_loss/a_b": 6 / 4,
        "val_loss/c": 3,
        "answer_loss/c": 3,
    }
    assert loss_metrics([]) == {}
