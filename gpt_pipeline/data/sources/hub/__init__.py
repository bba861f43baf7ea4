"""Raw files of a dataset on the hub: its cache, its counts and its downloads."""

from gpt_pipeline.data.sources.hub.dataset import Hub, HubDataset, open_dataset, recorded_dataset

__all__ = ["Hub", "HubDataset", "open_dataset", "recorded_dataset"]
