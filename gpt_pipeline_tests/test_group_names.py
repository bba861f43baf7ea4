"""What the pages call a data group, while its assets' keys, under which histories are found, stay as they are."""

from pathlib import Path

import dagster as dg
import pytest

from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.orchestration.keys import data_group, short_names
from gpt_pipeline.project import Project
from gpt_pipeline_tests.projects import TinyProject


@pytest.mark.parametrize(
    ("groups", "shown"),
    [
        (["data_sample_300_0a1b2c"], ["data_sample_300"]),
        (["data_sample_400000_0a1b2c", "data_synth_all_0a1b2d"], ["data_sample_400000", "data_synth_all"]),
        (["data_sample_300_0a1b2c", "data_sample_300_0a1b2d"], ["data_sample_300_0a1b2c", "data_sample_300_0a1b2d"]),
        (["data_sample_300_0a1b2c", "data_sample_300_0a1b2c_far"], ["data_sample_300", "data_sample_300_0a1b2c_far"]),
    ],
    ids=["alone", "different", "same but for the digest", "two base folders"],
)
def test_short_names_leave_out_the_digest_where_they_stay_unique(groups: list[str], shown: list[str]) -> None:
    assert list(short_names(groups).values()) == shown


def test_data_group_is_shown_without_its_digest_and_its_keys_keep_it(tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    project.write_experiment("tiny")
    group = data_group(project.experiment("tiny").config.data)
    definitions = build_definitions(Project(root=tmp_path, experiments=tmp_path / "experiments"))
    shards = dg.AssetKey([group, "token_shards"])
    (spec,) = (spec for spec in definitions.resolve_all_asset_specs() if spec.key == shards)
    assert spec.group_name == "data_sample_300"
    assert spec.code_version == group  # another would show all data as out of date
    job = definitions.resolve_job_def("data_tiny")
    assert {key.path[-1] for key in job.asset_layer.executable_asset_keys} == {
        "raw_synth",
        "english_parquet",
        "token_shards",
    }
