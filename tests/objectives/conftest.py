"""Shared by the tests of objectives: two processes to compare with one."""

from collections.abc import Iterator

import pytest
from parallel import OnTwoRanks, two_processes


@pytest.fixture(scope="package")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnTwoRanks]:
    with two_processes(tmp_path_factory.mktemp("ranks")) as run:
        yield run
