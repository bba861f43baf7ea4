"""What Dagster loads from the experiment files."""

import json
import os
import re
from pathlib import Path

import dagster as dg
import pytest

from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.orchestration.parted_asset import labels
from gpt_pipeline.project import DAGSTER_CONFIG, Project
from gpt_pipeline_tests.projects import TinyProject


def _definitions(project: TinyProject) -> dg.Definitions:
    return build_definitions(Project(root=project.root, experiments=project.root / "experiments"))


def _keys(project: TinyProject) -> set[str]:
    return {key.to_user_string() for key in _definitions(project).resolve_all_asset_keys()}


def test_definitions_one_experiment_has_its_stages_jobs_sensor_and_schedule(project: TinyProject) -> None:
    project.write_experiment("tiny")
    definitions = _definitions(project)
    own = {key for key in _keys(project) if key.startswith("tiny/")}
    shared = {key.split("/")[1] for key in _keys(project) - own}
    assert own == {"tiny/training", "tiny/checkpoint", "tiny/evaluation", "tiny/report"}
    assert shared == {"raw_synth", "english_parquet", "token_shards"}
    for name in ("run_tiny", "evaluate_tiny", "report_tiny"):
        assert definitions.resolve_job_def(name)
    sensor = definitions.resolve_sensor_def("new_checkpoints_tiny")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert definitions.resolve_schedule_def("reevaluate_tiny")


def test_definitions_same_documents_share_their_assets_whatever_else_differs(project: TinyProject) -> None:
    project.write_experiment("one")
    project.write_experiment("two", learning_rate=0.01, max_steps=8)
    assert len({key.split("/")[0] for key in _keys(project)} - {"one", "two", "comparison"}) == 1


def test_definitions_other_documents_have_their_own_assets(project: TinyProject) -> None:
    project.write_experiment("one")
    project.write_experiment("two", num_samples=301)
    assert len({key.split("/")[0] for key in _keys(project)} - {"one", "two", "comparison"}) == 2


def test_definitions_same_documents_in_other_base_folder_have_their_own_assets(project: TinyProject) -> None:
    project.write_experiment("one")
    path = project.write_experiment("two")
    path.write_text(path.read_text().replace("../storage", "../elsewhere"))
    assert len({key.split("/")[0] for key in _keys(project)} - {"one", "two", "comparison"}) == 2


def test_definitions_mix_stands_on_the_shards_of_its_parts_and_shares_them(project: TinyProject) -> None:
    project.write_experiment("alone")
    path = project.write_experiment("mixed")
    text = path.read_text().replace("{source: sample, num_samples: 300,", "{num_samples: 300,")
    parts = "mix: {a: {source: sample, share: 2}, b: {source: ./mine, format: text, share: 1}}"
    path.write_text(text.replace("validation_fraction: 0.1}", f"validation_fraction: 0.1, {parts}}}"))
    definitions = _definitions(project)
    graph = definitions.resolve_asset_graph()
    [mixed] = [key for key in graph.get_all_asset_keys() if key.path[-1] == "mixed_shards"]
    shards = graph.get(mixed).parent_keys
    [alone] = [
        key for key in graph.get(dg.AssetKey(["alone", "training"])).parent_keys if key.path[-1] == "token_shards"
    ]
    assert {key.path[-1] for key in shards} == {"token_shards"}
    assert len(shards) == 2
    assert alone in shards
    assert graph.get(dg.AssetKey(["mixed", "training"])).parent_keys == {mixed}
    selected = definitions.resolve_job_def("run_mixed").asset_layer.executable_asset_keys
    assert {key.path[-1] for key in selected} == {
        "raw_synth",
        "english_parquet",
        "raw_files",
        "documents",
        "token_shards",
        "mixed_shards",
        "training",
    }


def test_definitions_broken_file_shows_its_error_and_the_others_load(project: TinyProject) -> None:
    project.write_experiment("good")
    (project.root / "experiments" / "bad.yaml").write_text("experiment_name: [")
    definitions = _definitions(project)
    broken = [spec for spec in definitions.resolve_all_asset_specs() if spec.group_name == "bad"]
    assert len(broken) == 1
    assert "bad.yaml" in (broken[0].description or "")
    assert definitions.resolve_job_def("run_good")
    result = dg.materialize(
        [definitions.resolve_assets_def(broken[0].key)], instance=dg.DagsterInstance.ephemeral(), raise_on_error=False
    )
    failure = next(event for event in result.all_events if event.is_step_failure).step_failure_data
    assert failure.user_failure_data is not None
    assert "bad.yaml" in (failure.user_failure_data.description or "")


def test_definitions_two_broken_files_with_one_slug_both_show(project: TinyProject) -> None:
    folder = project.root / "experiments"
    folder.mkdir()
    (folder / "a-b.yaml").write_text("[]")
    (folder / "a_b.yaml").write_text("[]")
    assert len(_keys(project)) == 2


@pytest.mark.skipif(os.name == "nt", reason="a Windows folder is fine on Windows")
def test_definitions_windows_folder_elsewhere_is_a_broken_file_that_names_the_key(project: TinyProject) -> None:
    path = project.write_experiment("original")
    path.write_text(path.read_text().replace("../storage", r"'E:\GPT_SANDBOX_STORAGE'"))
    specs = list(_definitions(project).resolve_all_asset_specs())
    assert len(specs) == 1
    assert "storage.base_folder" in (specs[0].description or "")


def test_definitions_no_experiments_folder_says_how_to_begin(project: TinyProject) -> None:
    (spec,) = _definitions(project).resolve_all_asset_specs()
    assert spec.key == dg.AssetKey("start_here")
    assert str(project.root / "experiments") in (spec.description or "")


def test_definitions_loading_imports_nothing_heavy(project: TinyProject) -> None:
    for stem in ("one", "two"):  # with their comparison
        project.write_experiment(stem)
    code = (
        "import json, sys, gpt_pipeline.definitions as d; d.defs.resolve_all_job_defs();"
        "print(json.dumps([n for n in ('numpy', 'torch', 'mlflow', 'dagster_mlflow', 'datasets', 'transformers',"
        " 'pyarrow', 'tiktoken') if n in sys.modules]))"
    )
    assert json.loads(project.program(code)) == []


def test_packaged_dagster_yaml_is_the_projects_own() -> None:
    root = Path(__file__).parents[1]
    packaged = root / "gpt_pipeline" / "orchestration" / DAGSTER_CONFIG
    assert packaged.read_text() == (root / DAGSTER_CONFIG).read_text()


def test_labels_of_files_are_all_different_and_short() -> None:
    groups = [["a b.parquet"], ["a b_2.parquet"], ["a-b.parquet"], ["x" * 200 + ".parquet", "y.parquet"]]
    found = labels(groups)
    assert len(set(found)) == len(groups)
    assert all(re.fullmatch(r"\w{1,70}", label, flags=re.ASCII) for label in found)
