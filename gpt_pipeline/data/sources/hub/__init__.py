"""Raw files of a dataset on the hub: its listing, ranged reads, and downloads into the hub's cache."""

from gpt_pipeline.data.sources.hub.dataset import HubDataset, asked_dataset, open_dataset, recorded_dataset
from gpt_pipeline.data.sources.hub.remote import Hub

__all__ = ["Hub", "HubDataset", "asked_dataset", "open_dataset", "recorded_dataset"]
