"""A prepared toy dataset for the trainings of a file."""

import pytest
from support.toys import write_toy_dataset

from medseg.store.prepare import prepare


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    prepare(write_toy_dataset(folder), folder / "store", workers=1)
    return folder / "store"
