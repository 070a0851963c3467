"""Fixtures that several files of this folder share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained model with every second weight zero. Read only."""
    from tests.seft.checkpoint.test_export import export_half_sparse

    out = tmp_path_factory.mktemp("exported") / "model"
    export_half_sparse(out)
    return out
