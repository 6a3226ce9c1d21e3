"""The file of measurements."""

from __future__ import annotations

from pathlib import Path

from benchmarks.quality.measurements import MeasurementFile, record
from tests.benchmarks.quality.samples import measurements


def test_a_run_continues_with_the_complete_lines_of_a_killed_one(tmp_path: Path) -> None:
    path, (first, second, third, fourth) = tmp_path / "new" / "file", measurements("SIFT", 80)
    file = MeasurementFile(path)
    for key, measurement in (("1", first), ("2", second), ("3", third)):
        file.append(key, measurement)
    path.write_text(path.read_text()[:-100])  # as a kill within the last line leaves it

    resumed = MeasurementFile(path)
    assert list(resumed.measurements) == ["1", "2"]
    resumed.append("4", fourth)

    read = MeasurementFile(path).measurements
    assert list(read) == ["1", "2", "4"]
    assert record(read["4"]) == record(fourth)
