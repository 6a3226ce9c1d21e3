"""Which places of corpora a test is for."""

from __future__ import annotations

import pytest

# For tests of files, of a process that is given a folder, or of what shards copy.
in_a_folder = pytest.mark.parametrize("location", ["sqlite"], indirect=True)
