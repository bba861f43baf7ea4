"""Whether a mirror can be reached, written and read, and grants leases."""

from __future__ import annotations

import uuid

from gpt_pipeline.mirror.address import FILE, KEY, require_mirror, scheme_of
from gpt_pipeline.mirror.lease import grants_leases
from gpt_pipeline.mirror.store import MirrorError, open_store, require_library

_FOLDER = "check"


def check_from_here(url: str) -> None:
    """Check what shows without the network: that the mirror's folder is there, or what speaks to its store.

    Raises:
        ConfigError: the address cannot be a mirror.
        MirrorError: it is not.
    """
    require_mirror(url, key=KEY)
    if scheme_of(url) == FILE:
        open_store(url).sizes(_FOLDER)
    else:
        require_library(url)


def check_mirror(url: str) -> None:
    """Write, read and remove a small object in the mirror.

    Raises:
        ConfigError: the address cannot be a mirror.
        MirrorError: the mirror cannot be reached, refuses, or does not do what leases need.
    """
    store, name = open_store(url), f"{_FOLDER}/{uuid.uuid4().hex}"
    is_granted = grants_leases(store, name)
    try:
        if not is_granted:
            raise MirrorError(
                f"the mirror {url} overwrites an object that should only be created if there is none; need a store "
                "that heeds If-None-Match, or two machines could write one training"
            )
        store.put_bytes(name, name.encode())
        if store.get_bytes(name) != name.encode() or store.sizes(_FOLDER).get(name) != len(name):
            raise MirrorError(f"the mirror {url} does not give back what was just written to it")
    finally:
        store.remove([name])
