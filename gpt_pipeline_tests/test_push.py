"""Exports on the hub, which is a server on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt_pipeline.cli.main import command, main
from gpt_pipeline.errors import UserError
from gpt_pipeline.exchange.export import export_checkpoint, export_gguf
from gpt_pipeline.exchange.push import push_folder
from gpt_pipeline_tests.hub_server import FakeHub, running_hub
from gpt_pipeline_tests.test_exchange import checkpoint, experiment

NAME = "me/model"
TOKEN = "hf_secret"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with running_hub() as server:
        server.repository, server.token = NAME, TOKEN
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # files go by LFS
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    one = experiment(folder)
    for step in (3, 4):
        export_checkpoint(one, checkpoint(one, step).path, folder / f"step_{step}")
    export_gguf(one, one.folder.checkpoints / "checkpoint_step_3.pt", folder / "gguf")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def exit_code(*arguments: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def newest(hub: FakeHub) -> dict[str, bytes]:
    return {name: content for name, content in list(hub.commits.values())[-1].items() if name != ".gitattributes"}


@pytest.mark.parametrize("private", [True, False])
def test_push_makes_the_repository_and_uploads_every_file_in_one_commit(
    hub: FakeHub, exported: Path, private: bool
) -> None:
    pushed = push_folder(exported / "step_3", NAME, private=private)
    assert newest(hub) == files_of(exported / "step_3")
    assert len(hub.commits) == 2  # the hub's own first one, and this
    assert (pushed.commit, pushed.new) == (list(hub.commits)[-1], True)
    assert pushed.address == f"{hub.endpoint}/{NAME}/commit/{pushed.commit}"
    assert hub.created is not None
    assert hub.created.get("visibility") == ("private" if private else "public")
    assert hub.authorizations["hub"] <= {f"Bearer {TOKEN}", None}


def test_push_again_uploads_nothing(hub: FakeHub, exported: Path) -> None:
    first = push_folder(exported / "step_3", NAME, private=False)
    done = len(hub.uploads())
    again = push_folder(exported / "step_3", NAME, private=False)
    assert (again.commit, again.new, again.address) == (first.commit, False, first.address)
    assert len(hub.uploads()) == done


def test_push_of_another_checkpoint_sends_what_differs_and_deletes_what_went(hub: FakeHub, exported: Path) -> None:
    push_folder(exported / "step_3", NAME, private=False)
    older = newest(hub)
    record = json.loads(older["export.json"])
    record["files"]["old.txt"] = "0"
    hub.commit(
        {**older, "old.txt": b"of the export", "notes.txt": b"someone's", "export.json": json.dumps(record).encode()}
    )
    push_folder(exported / "step_4", NAME, private=False)
    assert newest(hub) == {**files_of(exported / "step_4"), "notes.txt": b"someone's"}
    assert sum(line.startswith("PUT") for line in hub.uploads()) == 2  # two different files of weights


@pytest.mark.parametrize(
    "change", [{"model.safetensors": None}, {"model.safetensors": b"of another"}, {"README.md": None}]
)
def test_push_to_a_repository_whose_files_are_not_the_exports_mends_it(
    hub: FakeHub, exported: Path, change: dict[str, bytes | None]
) -> None:
    push_folder(exported / "step_3", NAME, private=False)
    hub.commit({name: content for name, content in {**newest(hub), **change}.items() if content is not None})
    assert push_folder(exported / "step_3", NAME, private=False).new
    assert newest(hub) == files_of(exported / "step_3")


def test_push_again_leaves_a_card_that_was_edited_there(hub: FakeHub, exported: Path) -> None:
    push_folder(exported / "step_3", NAME, private=False)
    hub.commit({**newest(hub), "README.md": b"# Mine"})
    assert not push_folder(exported / "step_3", NAME, private=False).new
    assert newest(hub)["README.md"] == b"# Mine"


def test_push_broken_off_does_not_send_the_weights_twice(hub: FakeHub, exported: Path) -> None:
    hub.commit({})
    hub.objects = {}
    push_folder(exported / "step_3", NAME, private=False)
    hub.commits = {commit: {} for commit in list(hub.commits)[:1]}  # the weights came, the commit did not
    push_folder(exported / "step_3", NAME, private=False)
    assert sum(line.startswith("PUT") for line in hub.uploads()) == 1
    assert newest(hub) == files_of(exported / "step_3")


def test_push_over_something_else_touches_nothing(hub: FakeHub, exported: Path) -> None:
    hub.commit({"pytorch_model.bin": b"theirs", ".gitattributes": b""})
    with pytest.raises(
        UserError, match=r"found a repository with pytorch_model.bin and without a readable export.json"
    ):
        push_folder(exported / "step_3", NAME, private=False)
    assert hub.uploads() == []


def test_push_of_the_other_format_names_another_repository(hub: FakeHub, exported: Path) -> None:
    push_folder(exported / "step_3", NAME, private=False)
    with pytest.raises(UserError, match=rf"found an export with --format hf.*such as {NAME}-GGUF"):
        push_folder(exported / "gguf", NAME, private=False)
    assert newest(hub) == files_of(exported / "step_3")


def test_push_of_a_gguf_uploads_model_card_and_modelfile(hub: FakeHub, exported: Path) -> None:
    push_folder(exported / "gguf", NAME, private=False)
    assert set(newest(hub)) == {"model.gguf", "Modelfile", "README.md", "export.json"}


def test_push_after_a_change_by_another_uploads_nothing(
    hub: FakeHub, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    push_folder(exported / "step_3", NAME, private=False)
    commit = huggingface_hub.HfApi.create_commit

    def changed_meanwhile(*arguments: Any, **options: Any) -> Any:
        hub.commit({**newest(hub), "notes.txt": b"someone's"})
        return commit(*arguments, **options)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", changed_meanwhile)
    with pytest.raises(UserError, match="the repository was changed meanwhile"):
        push_folder(exported / "step_4", NAME, private=False)
    assert newest(hub)["notes.txt"] == b"someone's"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token": "another"}, r"the hub does not know the token \(HTTP 401\).*settings/tokens"),
        ({"read_only": True}, r"no right to write there \(HTTP 403\).*not of me"),
        ({"failing": 418}, r"the hub refused \(HTTP 418"),
    ],
)
def test_push_refused_says_why_and_shows_no_token(
    hub: FakeHub, exported: Path, change: dict[str, Any], message: str
) -> None:
    for name, value in change.items():
        setattr(hub, name, value)
    with pytest.raises(UserError, match=message) as caught:
        push_folder(exported / "step_3", NAME, private=False)
    assert TOKEN not in str(caught.value)


def test_push_without_network_says_so(hub: FakeHub, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"the hub cannot be reached \(ConnectError.*HF_ENDPOINT"):
        push_folder(exported / "step_3", NAME, private=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        push_folder(exported / "step_3", NAME, private=False)


@pytest.mark.parametrize(("token", "message"), [("", "neither HF_TOKEN nor"), ("hf a", "contains a blank")])
def test_push_without_a_usable_token_fails_before_anything_is_exported(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", token)
    one = experiment(tmp_path)
    checkpoint(one)
    arguments = ["export", str(one.file), "--checkpoint", "last", "--push", NAME, "--to", str(tmp_path / "to")]
    with pytest.raises(UserError, match=message):
        command.main(arguments, standalone_mode=False)
    assert hub.requests == []
    assert not (tmp_path / "to").exists()


def test_export_with_push_prints_the_commit(hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = experiment(tmp_path)
    checkpoint(one)
    for said in ("Uploaded, commit {}.", "Nothing to upload: commit {} has it."):
        assert exit_code("export", str(one.file), "--checkpoint", "last", "--push", NAME) == 0
        printed = capsys.readouterr()
        commit = list(hub.commits)[-1]
        assert printed.out == f"{hub.endpoint}/{NAME}/commit/{commit}\n"
        assert said.format(commit) in printed.err
    assert "model.safetensors" in newest(hub)
