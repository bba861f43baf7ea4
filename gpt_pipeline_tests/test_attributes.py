"""What Dagster's pages show before anything is made, and what leads from them to other pages."""

from pathlib import Path

import dagster as dg
import pytest

from gpt_pipeline.evaluation.result import read_evaluations
from gpt_pipeline.evaluation.shares import Share
from gpt_pipeline.orchestration import attributes
from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.orchestration.tracking_resource import MlflowTracking
from gpt_pipeline.project import MLFLOW_PAGE_VARIABLE, Project
from gpt_pipeline.report.tables import checkpoints_as_markdown
from gpt_pipeline.tracking.tables import kinds_as_markdown
from gpt_pipeline_tests.projects import TinyProject


@pytest.fixture
def definitions(tmp_path: Path) -> dg.Definitions:
    project = TinyProject(root=tmp_path)
    project.write_experiment("one")
    project.write_experiment("two", learning_rate=0.01)
    return build_definitions(Project(root=tmp_path, experiments=tmp_path / "experiments"))


def test_every_asset_has_description_owner_stage_kind_and_code_that_is_there(definitions: dg.Definitions) -> None:
    specs = list(definitions.resolve_all_asset_specs())
    shown = {spec.key.path[-1] for spec in specs}
    of_others = {"raw_files", "documents", "tokenizer", "mixed_shards"}  # of other formats, of a tokenizer, of a mix
    of_others |= {"rl_prompts"}  # of reinforcement learning
    assert shown | of_others == set(attributes.SOURCES)
    for spec in specs:
        assert spec.description
        assert spec.owners == attributes.OWNERS
        assert spec.kinds
        assert spec.tags["gpt_pipeline/stage"] == spec.key.path[-1]
        references = spec.metadata["dagster/code_references"].code_references
        assert all(Path(reference.file_path).is_file() for reference in references)


def test_assets_of_an_experiment_lead_to_its_file_and_those_that_are_shared_do_not(definitions: dg.Definitions) -> None:
    for spec in definitions.resolve_all_asset_specs():
        files = [Path(each.file_path).name for each in spec.metadata["dagster/code_references"].code_references]
        own = spec.key.path[0] in ("one", "two")
        assert ("gpt_pipeline/experiment" in spec.tags) == own
        assert (files[0] == f"{spec.key.path[0]}.yaml") == own


def test_experiment_file_of_a_long_name_is_shown_beside_the_others(tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    for stem in ("one", "rates-training.learning_rate=0.001-model.n_layer=12-training.weight_decay=0.1"):
        project.write_experiment(stem)
    definitions = build_definitions(Project(root=tmp_path, experiments=tmp_path / "experiments"))
    specs = definitions.resolve_all_asset_specs()
    tags = {spec.tags["gpt_pipeline/experiment"] for spec in specs if spec.key.path[-1] == "training"}
    assert tags == {"one", "rates_training_learning_rate_0_001_model_n_layer_12_training_we"}


def test_training_tells_its_main_numbers_before_it_runs(definitions: dg.Definitions) -> None:
    (training,) = [spec for spec in definitions.resolve_all_asset_specs() if spec.key.path == ["two", "training"]]
    assert str(training.metadata["model"]).startswith("808,400 parameters: gpt2, 1 layer,")
    assert training.metadata["batch"] == "128 tokens a step: 4 x 32"
    assert "from 0.01" in str(training.metadata["schedule"])


def test_form_of_an_evaluation_has_force_and_the_experiments_number_of_questions(definitions: dg.Definitions) -> None:
    job = definitions.resolve_job_def("evaluate_one")
    config = job.run_config_schema.config_type.fields["ops"].config_type.fields["one__evaluation"].config_type
    fields = config.fields["config"].config_type.fields
    assert set(fields) == {"force", "num_questions"}
    assert fields["num_questions"].default_value == 2
    assert all(field.description for field in fields.values())


def test_form_of_a_run_shows_no_store(definitions: dg.Definitions) -> None:
    defaults = definitions.resolve_job_def("run_one").run_config_schema.config_type.fields
    assert "tracking_uri" not in str(defaults["resources"].default_value)


def test_links_of_a_database_lead_where_its_pages_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = MlflowTracking(tracking_uri="sqlite:////data/mlflow.db")
    monkeypatch.delenv(MLFLOW_PAGE_VARIABLE, raising=False)
    links = tracking.links(experiment_id="1", run_id="abc")
    assert links["mlflow_run"].value == "http://127.0.0.1:5000/#/experiments/1/runs/abc?workflowType=machine_learning"
    assert "sqlite:////data/mlflow.db" in str(links["mlflow_pages"].value)
    monkeypatch.setenv(MLFLOW_PAGE_VARIABLE, "http://127.0.0.1:5003/")
    links = tracking.links(experiment_id="1", run_id="abc")
    assert links["mlflow_run"].value == "http://127.0.0.1:5003/#/experiments/1/runs/abc?workflowType=machine_learning"


def test_links_of_a_server_lead_to_it_and_to_nothing_else() -> None:
    links = MlflowTracking(tracking_uri="https://mlflow.example/").links(experiment_id="1", run_id="abc")
    assert {name: link.value for name, link in links.items()} == {
        "mlflow_run": "https://mlflow.example/#/experiments/1/runs/abc?workflowType=machine_learning"
    }


def test_checkpoints_as_markdown_has_a_row_for_each_and_names_the_best(finished: TinyProject) -> None:
    folder = finished.experiment("tiny").folder
    _, _, *rows = checkpoints_as_markdown(folder).splitlines()
    best = min(read_evaluations(folder.evaluations), key=lambda result: result.metrics["val_loss"])
    assert len(rows) == 3
    assert [f"**{best.step}" in row for row in rows] == [result == best.step for result in (4, 8, 12)]
    assert sum("best_model" in row for row in rows) == 1


def test_kinds_as_markdown_puts_what_was_measured_beside_each_other() -> None:
    metrics = {"val_loss": 1.0, "val_loss/rag": 2.0, "answer_loss/rag": 3.0, "val_loss/math_exercise": 4.0}
    metrics |= {"correct/rag": 0.25}
    assert kinds_as_markdown(metrics, {"rag": Share(successes=1, total=4)}) == "\n".join(
        [
            "| kind | val loss | answer loss | correct |",
            "|---|---:|---:|---:|",
            "| math exercise | 4.0000 | | |",
            "| rag | 2.0000 | 3.0000 | 25 % (5–70 %) |",
        ]
    )
    assert kinds_as_markdown({"val_loss": 1.0}, {}) is None
