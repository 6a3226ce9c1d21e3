"""The main module of spawned processes."""

from __future__ import annotations

import multiprocessing
import sys

from serving.engine.core_process import main_of_spawned_processes


def test_spawned_processes_import_a_small_main_module_that_hides_unused_packages() -> None:
    main = sys.modules["__main__"]
    before = main.__spec__
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with main_of_spawned_processes():
        process = context.Process(target=report_modules, args=(queue,))
        process.start()
    found = queue.get(timeout=60)
    process.join(60)

    assert found == {
        "main": "serving.engine.core_process",
        "ray": False,
        "hidden": ["scipy.signal", "sklearn"],
    }
    assert main.__spec__ is before


def report_modules(queue: multiprocessing.Queue[dict[str, object]]) -> None:
    spec = sys.modules["__main__"].__spec__
    queue.put(
        {
            "main": spec.name if spec else None,
            "ray": "ray" in sys.modules,
            "hidden": sorted(name for name, module in sys.modules.items() if module is None),
        }
    )
