"""The compiled choice against `Posterior`: the same picks up to ties, the same uncertainties."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selection import strategies
from selection.strategies import sift_numba
from selection.strategies.posterior import Posterior
from selection.strategies.sift import Choice, should_stop, sift

Floats = npt.NDArray[np.floating]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Floats, Floats]:
    """Candidates, some of them copies of others, and targets; float32 or float64."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dimension, distinct = draw(st.integers(1, 70)), draw(st.integers(0, 40))
    vectors = generator.standard_normal((distinct + draw(st.integers(1, 3)), dimension)) + draw(
        st.floats(0, 1)
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if distinct and draw(st.booleans()):
        rows = generator.integers(0, distinct, draw(st.integers(1, 60)))
    else:
        rows = np.arange(distinct)
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return vectors[rows].astype(dtype), vectors[distinct:].astype(dtype)


def assert_follows_posterior(
    choice: Choice,
    candidates_KD: Floats,
    targets_TD: Floats,
    steps: int,
    alpha: float | None,
    **options: Any,
) -> None:
    """Assert that `Posterior` gives these picks, this stop and these uncertainties."""
    # The tolerance of inner products that are summed in another order.
    tolerance = 1e-9 if candidates_KD.dtype == np.float64 else 2e-5
    posterior = Posterior(candidates_KD[None], targets_TD[None], steps=max(steps, 0), **options)
    assert choice.uncertainty[0] == 1.0
    assert len(choice.uncertainty) == len(choice.picks) + 1
    for n, pick in enumerate(choice.picks):
        reductions_K = posterior.reductions()[0]
        assert not should_stop(choice.uncertainty[n], n, alpha)
        # Compared as roots: the error of a covariance does not depend on its size, and a reduction
        # is its square.
        assert reductions_K[pick] ** 0.5 >= reductions_K.max() ** 0.5 - tolerance
        posterior.pick([pick])
        assert choice.uncertainty[n + 1] ** 2 == pytest.approx(
            posterior.sigma[0] ** 2, rel=tolerance, abs=tolerance
        )
    stopped = len(candidates_KD) > 0 and len(choice.picks) < steps
    assert choice.stop == ("alpha" if stopped else "steps")
    if stopped:
        assert should_stop(choice.uncertainty[-1], len(choice.picks), alpha)
    else:
        assert len(choice.picks) == (max(steps, 0) if len(candidates_KD) else 0)


@settings(max_examples=150, deadline=None)
@given(
    problems(),
    st.integers(-1, 70),
    st.sampled_from([0.01, 0.1, 1.0, 10.0]),
    st.sampled_from([None, 0.05, 0.3, 3.0]),
)
def test_the_compiled_choice_is_that_of_the_posterior(
    problem: tuple[Floats, Floats],
    steps: int,
    regularisation: float,
    alpha: float | None,
) -> None:
    candidates_KD, targets_TD = problem

    choice = sift(
        candidates_KD,
        targets_TD,
        steps=steps,
        regularisation=regularisation,
        alpha=alpha,
    )

    assert_follows_posterior(
        choice,
        candidates_KD,
        targets_TD,
        steps,
        alpha,
        regularisation=regularisation,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("candidates", "dimension"), [(200, 1024), (1000, 384), (333, 37)])
def test_the_compiled_choice_is_that_of_the_posterior_at_full_size(
    dtype: npt.DTypeLike, candidates: int, dimension: int
) -> None:
    generator = np.random.default_rng(candidates)
    centres = generator.standard_normal((candidates // 5, dimension))
    vectors = centres[generator.integers(0, len(centres), candidates + 2)]
    vectors = vectors + 0.5 * generator.standard_normal(vectors.shape)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype)

    choice = sift(vectors[:-2], vectors[-2:], steps=50, regularisation=0.1)

    assert_follows_posterior(choice, vectors[:-2], vectors[-2:], 50, None, regularisation=0.1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dimension", [1, 5, 37, 64])
def test_the_first_of_equal_candidates_is_picked(dtype: npt.DTypeLike, dimension: int) -> None:
    vector_1D: Floats = np.random.default_rng(3).standard_normal((1, dimension)).astype(dtype)
    copies_KD = np.repeat(vector_1D, 23, axis=0)

    choice = sift(copies_KD, vector_1D, steps=7, regularisation=0.1)

    assert choice.picks == (0,) * 7


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_memory_layout_of_embeddings_does_not_matter(dtype: npt.DTypeLike) -> None:
    generator = np.random.default_rng(4)
    candidates_KD: Floats = generator.standard_normal((30, 12)).astype(dtype)
    target_TD: Floats = generator.standard_normal((1, 12)).astype(dtype)
    read_only_KD: Floats = np.frombuffer(candidates_KD.tobytes(), dtype).reshape(30, 12)
    strided_KD = np.repeat(candidates_KD, 2, axis=1)[:, ::2]

    expected = sift(candidates_KD, target_TD, steps=9, regularisation=0.1)

    for other_KD in (read_only_KD, strided_KD, np.asfortranarray(candidates_KD)):
        assert sift(other_KD, target_TD, steps=9, regularisation=0.1) == expected
    mixed = sift(candidates_KD, target_TD.astype(np.float64), steps=9, regularisation=0.1)
    assert mixed.picks == expected.picks


def choose_in(folder: Path, **environment: str) -> str:
    """The picks of a new process with the modules of that folder, and its errors; numba must not be
    imported before the first choice.
    """
    script = (
        "import sys; from selection.strategies.sift import sift; "
        "import numpy as np; assert 'numba' not in sys.modules; "
        "print(sift(np.eye(3), np.ones((1, 3)), steps=3, regularisation=0.1).picks)"
    )
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "XDG_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=inherited | {"PYTHONPATH": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the three modules of SIFT, which need no others."""
    package = tmp_path / "selection" / "strategies"
    package.mkdir(parents=True)
    (tmp_path / "selection" / "__init__.py").touch()
    (package / "__init__.py").touch()
    assert strategies.__file__
    for name in ("posterior.py", "sift.py", "sift_numba.py"):
        shutil.copy(Path(strategies.__file__).with_name(name), package)
    return tmp_path


def test_compilation_works_without_a_writable_cache_folder(folder: Path) -> None:
    # Arrange: files in place of the cache folders, so that nothing can be written.
    (folder / "selection" / "strategies" / "__pycache__").touch()
    (folder / "home").touch()

    assert choose_in(folder, HOME=str(folder / "home")) == "(0, 1, 2)\n"


def test_damaged_machine_code_is_recompiled(folder: Path) -> None:
    cache = folder / "cache"
    assert choose_in(folder, NUMBA_CACHE_DIR=str(cache)) == "(0, 1, 2)\n"
    cached = list(cache.rglob("*.nbc"))
    assert cached
    for file in cached:
        file.write_bytes(file.read_bytes()[:1000])

    assert choose_in(folder, NUMBA_CACHE_DIR=str(cache)) == "(0, 1, 2)\n"


@given(problems(), st.integers(0, 30), st.sampled_from([None, 0.05, 0.5]))
@settings(max_examples=40, deadline=None)
def test_a_choice_in_units_of_work_is_the_same_choice(
    problem: tuple[Floats, Floats], steps: int, alpha: float | None
) -> None:
    whole = sift(*problem, steps=steps, regularisation=0.1, alpha=alpha)
    units: list[int] = []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sift_numba, "_UNIT_PRODUCTS", 1)  # one step a unit
        in_units = sift(
            *problem,
            steps=steps,
            regularisation=0.1,
            alpha=alpha,
            check_cancelled=lambda: units.append(len(units)),
        )

    assert in_units == whole
    assert len(units) >= len(whole.picks)


def test_a_choice_can_be_cancelled_between_units_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates_KD = np.eye(20, 30, dtype=np.float32)
    targets_TD = np.ones((2, 30), np.float32)
    monkeypatch.setattr(sift_numba, "_UNIT_PRODUCTS", 1)
    units: list[int] = []

    def cancel_at_the_third() -> None:
        units.append(len(units))
        if len(units) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        sift(
            candidates_KD,
            targets_TD,
            steps=10,
            regularisation=0.1,
            check_cancelled=cancel_at_the_third,
        )
    assert len(units) == 3
