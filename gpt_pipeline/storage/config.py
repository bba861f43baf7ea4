"""The `storage:` block of an experiment file."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_pipeline.errors import require


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """Where an experiment keeps its files, and which checkpoint it resumes from."""

    base_folder: str
    """Folder for all data and checkpoints; a relative path starts at the experiment file's folder."""

    checkpoint_to_resume: str | None = None
    """A file name in the `checkpoints` folder to resume from; null: the newest valid one; `scratch`: start over."""

    def __post_init__(self) -> None:
        require(bool(self.base_folder.strip()), "base_folder", found=self.base_folder, need="the path of a folder")
        name = self.checkpoint_to_resume
        if name is not None and name != "scratch":
            plain = name.endswith(".pt") and "/" not in name and "\\" not in name and ":" not in name
            require(
                plain,
                "checkpoint_to_resume",
                found=name,
                need="a file name such as checkpoint_step_50000.pt, `scratch`, or null",
            )
