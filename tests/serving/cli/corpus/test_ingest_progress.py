"""Progress of an ingest: which counts are shown, and how the time left is estimated."""

from __future__ import annotations

from serving.cli.corpus.ingest_progress import IngestProgress
from serving.cli.progress import ProgressLines


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def ignore(_progress: IngestProgress) -> None:
    pass


def test_a_line_is_printed_every_few_seconds() -> None:
    clock, printed = Clock(), list[str]()
    lines = ProgressLines("adding", printed.append, clock)
    progress = IngestProgress(10, 1_000_000, lambda now: lines.report(str(now)), clock)

    for number in range(10):
        progress.open_file(100_000)
        progress.read_document(f"{number}", 100_000)
        clock.seconds += 2
        progress.add_embedded(50)
        progress.finish_document(f"{number}", 50)
        progress.close_file()

    assert printed == [
        "adding: 2 of 10 files, 0.2 of 1.0 MB, 150 sequences, 25.0/s, about 24 s left",
        "adding: 5 of 10 files, 0.5 of 1.0 MB, 300 sequences, 25.0/s, about 12 s left",
        "adding: 8 of 10 files, 0.8 of 1.0 MB, 450 sequences, 25.0/s, about 4 s left",
    ]


def test_skipped_documents_do_not_count_towards_the_speed() -> None:
    clock = Clock()
    progress = IngestProgress(3, 3_000_000, ignore, clock)
    progress.open_file(1_000_000)
    progress.read_document("old", 1_000_000)
    progress.finish_document("old", 0)
    progress.close_file()
    assert "left" not in str(progress)

    progress.open_file(1_000_000)
    progress.read_document("new", 1_000_000)
    clock.seconds += 600
    progress.add_embedded(6000)
    progress.finish_document("new", 6000)
    progress.close_file()

    assert (
        str(progress) == "2 of 3 files, 2.0 of 3.0 MB, 6,000 sequences, 10.0/s, about 10 min left"
    )


def test_a_table_counts_as_many_bytes_as_its_file_has() -> None:
    progress = IngestProgress(2, 2000, ignore)
    progress.open_file(1000)
    for row in range(5):
        progress.read_document(f"compressed#{row}", 400)
        progress.finish_document(f"compressed#{row}", 1)
    progress.close_file()
    assert progress.done == 1000

    progress.open_file(1000)
    progress.read_document("verbose#1", 10)
    progress.finish_document("verbose#1", 1)
    progress.close_file()
    assert progress.done == 2000
