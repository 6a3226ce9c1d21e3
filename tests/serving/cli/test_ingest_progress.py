"""How far an ingest is: what is told, when, and that what is passed over makes no promise for the
rest.
"""

from __future__ import annotations

from serving.cli.ingest_progress import IngestProgress


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_line_every_few_seconds_however_much_happens() -> None:
    clock, lines = Clock(), list[str]()
    progress = IngestProgress(10, 1_000_000, lines.append, 5.0, clock)

    for number in range(10):
        progress.open_file(100_000)
        progress.document(f"{number}", 100_000)
        clock.seconds += 2
        progress.embedded(50)
        progress.settled(f"{number}", 50)
        progress.close_file()

    assert lines == [
        "2 of 10 files, 0.2 of 1.0 MB, 150 sequences, 25.0 a second, about 24 s left",
        "5 of 10 files, 0.5 of 1.0 MB, 300 sequences, 25.0 a second, about 12 s left",
        "8 of 10 files, 0.8 of 1.0 MB, 450 sequences, 25.0 a second, about 4 s left",
    ]


def test_what_was_there_already_is_no_measure_of_the_rest() -> None:
    clock = Clock()
    progress = IngestProgress(3, 3_000_000, lambda line: None, 5.0, clock)
    progress.open_file(1_000_000)
    progress.document("old", 1_000_000)
    progress.settled("old", 0)
    progress.close_file()
    assert "left" not in str(progress)

    progress.open_file(1_000_000)
    progress.document("new", 1_000_000)
    clock.seconds += 600
    progress.embedded(6000)
    progress.settled("new", 6000)
    progress.close_file()

    assert (
        str(progress)
        == "2 of 3 files, 2.0 of 3.0 MB, 6,000 sequences, 10.0 a second, about 10 min left"
    )


def test_a_table_has_as_many_bytes_as_its_file_whatever_it_unfolds_to() -> None:
    progress = IngestProgress(2, 2000, lambda line: None)
    progress.open_file(1000)
    for row in range(5):
        progress.document(f"packed#{row}", 400)
        progress.settled(f"packed#{row}", 1)
    progress.close_file()
    assert progress.done == 1000

    progress.open_file(1000)
    progress.document("wordy#1", 10)
    progress.settled("wordy#1", 1)
    progress.close_file()
    assert progress.done == 2000
