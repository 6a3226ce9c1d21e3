"""The plot of training speed."""

from __future__ import annotations

from xml.etree import ElementTree

from benchmarks.training.main import curves


def test_the_plot_shows_every_model_and_its_plain_loop() -> None:
    by_model = {
        name: {
            "chosen_precision": "float32",
            "plain_tokens_per_second": (speed, speed, speed),
            "trainer": {
                "float32": {n: {"tokens_per_second": (2 * speed, 0, 0)} for n in ("1", "8")}
            },
        }
        for name, speed in (("small", 3000.0), ("large", 100.0))
    }

    plot = ElementTree.fromstring(curves(by_model))

    paths = [path.attrib for path in plot if path.tag.endswith("path")]
    assert sum("stroke-dasharray" in path for path in paths) == 2
    assert sum(path.get("fill") == "none" for path in paths) == 2
    assert {"small", "large", "1", "8", "100", "10,000"} <= {part.text for part in plot}
