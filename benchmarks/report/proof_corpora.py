"""Proof: the corpora, and the runs that measured the parts."""

from __future__ import annotations

from benchmarks.report.formatting import Result, runs_of, titled_table


def corpora_and_runs(result: Result) -> list[str]:
    """A table of the corpora, and one of the runs."""
    return [
        *_corpora(result),
        *titled_table(
            "Runs",
            "The parts may come from different runs; a run adds its passages to those of former "
            "runs of the same code.",
            ["part", "passages", "command", "commit", "processor"],
            [
                [
                    name,
                    str(run["rows"] or ""),
                    f"`{run['command']}`",
                    str(run["commit"])[:10],
                    run["machine"]["processor"] if "machine" in run else "",
                ]
                for name, part in result["parts"].items()
                for run in runs_of(part)
            ],
        ),
    ]


def _corpora(result: Result) -> list[str]:
    rows = []
    for title, part in result["parts"].items():
        for name, corpus in part.get("corpora", {}).items():
            learnt = part.get("learnt", {}).get(name, {}).get("corpus")
            rows.append(
                [
                    title,
                    name,
                    f"{corpus['documents']:,}",
                    f"{corpus['sequences']:,}",
                    f"{corpus['bytes'] / 1e6:.2f}",
                    str(corpus["documents_near_passages"]),
                    str(corpus["suffixes_in_corpus"]),
                    f"{learnt['adapter']['sequences']:,}" if learnt else "",
                    f"{learnt['seconds']:.0f}" if learnt else "",
                ]
            )
    return titled_table(
        "The corpora",
        "Near documents have half of the eight-word runs of a text that is scored. They are left "
        "in, unless the corpus is deduplicated; a whole scored text is in no corpus.",
        [
            "part",
            "corpus",
            "documents",
            "sequences",
            "MB",
            "near documents",
            "scored texts in it",
            "sequences learnt",
            "learning, s",
        ],
        rows,
    )
