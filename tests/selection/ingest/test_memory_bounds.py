"""Memory that small files expand to, measured in a process of its own by its peak resident set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

_REPOSITORY = Path(__file__).resolve().parents[3]
_MEASURED = """
import json, re, sys
from pathlib import Path
import pyarrow.parquet
from selection.ingest.chunking import Chunking, split
from selection.ingest.readers import read_file
from selection.corpus.sqlite_store import CorpusError

def peak():
    # Not getrusage, whose value for a new process begins at its parent's size.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10

if len(sys.argv) > 2:
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
    split("A few words to begin with.", tokenizer, Chunking())
before, texts, chunks, problem = peak(), 0, 0, ""
try:
    for document in read_file(Path(sys.argv[1]), "t"):
        texts += 1
        if len(sys.argv) > 2:
            chunks = len(split(document.text, tokenizer, Chunking()))
except CorpusError as refused:
    problem = str(refused)
print(json.dumps({"MiB": peak() - before, "texts": texts, "chunks": chunks, "problem": problem}))
"""


def measured(file: Path, *tokenizer: str) -> dict[str, Any]:
    """Read a file, and split its text if a tokenizer is given; the results, and the memory used."""
    command = [sys.executable, "-c", _MEASURED, str(file), *tokenizer]
    ran = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, check=True)
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def test_a_few_kilobytes_that_expand_to_a_text_of_40_mib_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"text": ["word " * (8 << 20)]}), file, compression="zstd"
    )
    assert file.stat().st_size < 5000

    found = measured(file)

    assert (
        found["problem"]
        == "t, row 1: its `text` has 40 MiB, and a text has at most 16 MiB: split it"
    )
    assert found["MiB"] < 400  # the page, its copy in Arrow, and as a string


def test_many_equal_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    rows = pyarrow.DictionaryArray.from_arrays(
        np.zeros(60_000, np.int32), ["some ten thousand " * 556]
    )
    pyarrow.parquet.write_table(
        pyarrow.table({"text": rows}), file, compression="zstd", store_schema=False
    )
    assert file.stat().st_size < 1000

    found = measured(file)

    assert (found["texts"], found["problem"]) == (60_000, "")
    assert found["MiB"] < 60


def test_a_long_text_is_split_in_little_memory(tmp_path: Path, nano: str) -> None:
    file = tmp_path / "t.txt"
    line = "A line of a few words that goes on and on. "
    file.write_text(line * ((3 << 20) // len(line)))

    found = measured(file, nano)

    assert found["chunks"] > 1000
    assert found["MiB"] < 120  # at once it takes 75 bytes for each character, which are 225 MiB
