"""What `make update` makes of versions; the installing itself is tried by running it."""

from gpt_pipeline_tests.newest import CONSTRAINTS, changes_between, versions_of, with_versions

_TEXT = "# why\n# torch has no build tag\nabsl-py==2.5.1\ntorch==2.13.0\n"


def test_versions_of_a_frozen_environment_have_no_builds_and_nothing_of_one_platform() -> None:
    frozen = "absl-py==2.6.0\nnvidia-cublas-cu12==12.8\ntriton==3.4\ntorch==2.13.0+cpu\n-e git+ssh://here\n"
    assert versions_of(frozen) == {"absl-py": "2.6.0", "torch": "2.13.0"}


def test_constraints_keep_their_comments_and_take_the_versions() -> None:
    text = with_versions(_TEXT, {"torch": "2.13.0", "Absl-py": "2.6.0"})
    assert text == "# why\n# torch has no build tag\nAbsl-py==2.6.0\ntorch==2.13.0\n"


def test_changes_name_what_differs_whatever_the_spelling_of_a_name() -> None:
    before = {"ast_serialize": "1", "old": "1", "same": "1"}
    after = {"ast-serialize": "2", "new.one": "1", "same": "1"}
    assert changes_between(before, after) == [
        "ast-serialize: 1 -> 2",
        "new-one: new -> 1",
        "old: 1 -> needed no longer",
    ]


def test_the_repositorys_constraints_are_such_a_file() -> None:
    text = CONSTRAINTS.read_text(encoding="utf-8")
    assert changes_between(versions_of(text), versions_of(with_versions(text, versions_of(text)))) == []
    assert {"torch", "dagster", "mlflow"} <= set(versions_of(text))
