"""`gpt-pipeline serve` on a finished project."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.result import read_evaluations
from gpt_pipeline.serving.models import find_wanted
from gpt_pipeline_tests.projects import TinyProject


def test_wanted_models_are_named_after_file_and_checkpoint(finished: TinyProject) -> None:
    file = str(finished.root / "experiments" / "tiny.yaml")
    wanted = find_wanted([file, f"{file}@step_4", f"{file}@last"])
    assert [(each.name, each.checkpoint.step) for each in wanted[1:]] == [("tiny@step_4", 4), ("tiny@last", 12)]
    assert wanted[0].name == "tiny"
    with pytest.raises(UserError, match="two models of the name tiny"):
        find_wanted([file, f"{file}@best"])
    with pytest.raises(UserError, match=r"FILE\.yaml@best_model\.pt"):
        find_wanted(["checkpoints/best_model.pt"])


def _lines(output: Iterator[str]) -> list[str]:
    """Return what is printed up to the server's address."""
    lines = []
    for line in output:
        lines.append(line.strip())
        if line.startswith("http"):
            break
    return lines


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_serve_answers_as_the_evaluation_did_and_finishes_an_answer_before_it_stops(finished: TinyProject) -> None:
    best = read_evaluations(finished.experiment("tiny").folder.evaluations)[-1]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refusal = finished.run("serve", "experiments/tiny.yaml", "--port", str(port), expect=1)
        assert f"--port: found port {port} in use by another program" in refusal
    process = finished.start("serve", "experiments/tiny.yaml", "experiments/tiny.yaml@step_8", "--port", str(port))
    assert process.stdout is not None
    try:
        lines = _lines(process.stdout)
        assert lines[-1] == f"http://127.0.0.1:{port}"
        assert "tiny@step_8: checkpoint_step_8.pt, step 8" in lines
        for known in best.answers:
            message = {"role": "user", "content": known["question"]}
            body = {"model": "tiny", "messages": [message], "temperature": 0, "max_tokens": 4}
            if not known["reference_reasoning"]:
                body["reasoning_effort"] = "none"
            connection = http.client.HTTPConnection(urlsplit(lines[-1]).netloc)
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            if "error" in answer:  # an evaluation cuts a long prompt, a server refuses it
                assert answer["error"]["code"] == "context_length_exceeded"
                continue
            said = answer["choices"][0]["message"]
            assert said["content"] == known["answer"]
            assert said.get("reasoning_content", "") == known["reasoning"]
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
        assert "Stopping ..." in rest
        assert process.returncode == 0
    finally:
        process.kill()
