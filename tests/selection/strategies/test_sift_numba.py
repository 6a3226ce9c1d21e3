"""The compiled choice against `Posterior`, the same mathematics line by line: same picks up to
ties, same sigma.
"""

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
from selection.strategies import sift_numba as greedy_module
from selection.strategies.sift import Choice, Posterior, has_stalled, sift, sift_batch

Floats = npt.NDArray[np.floating]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Floats, Floats]:
    """Candidates, copies of each other among them, and targets; float32 or float64."""
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


def follow(
    choice: Choice,
    candidates_KD: Floats,
    targets_TD: Floats,
    steps: int,
    alpha: float | None,
    **options: Any,
) -> None:
    """Assert that `Posterior` would have picked so, stopped there, and says the same uncertainties."""
    # Inner products are summed in another order.
    close = 1e-9 if candidates_KD.dtype == np.float64 else 2e-5
    posterior = Posterior(candidates_KD[None], targets_TD[None], steps=max(steps, 0), **options)
    assert choice.uncertainty[0] == 1.0
    assert len(choice.uncertainty) == len(choice.picks) + 1
    for n, pick in enumerate(choice.picks):
        reductions_K = posterior.reductions()[0]
        assert not has_stalled(choice.uncertainty[n], n, alpha)
        # Roots: a covariance is wrong by so much whatever its size, and a reduction goes with its
        # square.
        assert reductions_K[pick] ** 0.5 >= reductions_K.max() ** 0.5 - close
        posterior.pick([pick])
        assert choice.uncertainty[n + 1] ** 2 == pytest.approx(
            posterior.sigma[0] ** 2, rel=close, abs=close
        )
    stalled = len(candidates_KD) > 0 and len(choice.picks) < steps
    assert choice.stop == ("alpha" if stalled else "steps")
    if stalled:
        assert has_stalled(choice.uncertainty[-1], len(choice.picks), alpha)
    else:
        assert len(choice.picks) == (max(steps, 0) if len(candidates_KD) else 0)


@settings(max_examples=150, deadline=None)
@given(
    problems(),
    st.integers(-1, 70),
    st.sampled_from([0.01, 0.1, 1.0, 10.0]),
    st.sampled_from([0.0, 0.05, 1.0]),
    st.sampled_from([None, 0.05, 0.3, 3.0]),
)
def test_the_compiled_choice_is_that_of_the_posterior(
    problem: tuple[Floats, Floats],
    steps: int,
    regularisation: float,
    nugget: float,
    alpha: float | None,
) -> None:
    candidates_KD, targets_TD = problem

    choice = sift(
        candidates_KD,
        targets_TD,
        steps=steps,
        regularisation=regularisation,
        nugget=nugget,
        alpha=alpha,
    )

    follow(
        choice,
        candidates_KD,
        targets_TD,
        steps,
        alpha,
        regularisation=regularisation,
        nugget=nugget,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("candidates", "dimension"), [(200, 1024), (1000, 384), (333, 37)])
def test_it_is_at_full_size_too(dtype: npt.DTypeLike, candidates: int, dimension: int) -> None:
    generator = np.random.default_rng(candidates)
    centres = generator.standard_normal((candidates // 5, dimension))
    vectors = centres[generator.integers(0, len(centres), candidates + 2)]
    vectors = vectors + 0.5 * generator.standard_normal(vectors.shape)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype)

    choice = sift(vectors[:-2], vectors[-2:], steps=50, regularisation=0.1)

    follow(choice, vectors[:-2], vectors[-2:], 50, None, regularisation=0.1, nugget=0.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dimension", [1, 5, 37, 64])
def test_among_equals_the_first_is_taken_wherever_they_stand(
    dtype: npt.DTypeLike, dimension: int
) -> None:
    vector_1D: Floats = np.random.default_rng(3).standard_normal((1, dimension)).astype(dtype)
    copies_KD = np.repeat(vector_1D, 23, axis=0)

    repeating = sift(copies_KD, vector_1D, steps=7, regularisation=0.1)
    visiting = sift(copies_KD, vector_1D, steps=23, regularisation=0.1, nugget=0.5)

    assert repeating.picks == (0,) * 7
    assert visiting.picks == tuple(range(23))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_how_embeddings_lie_in_memory_does_not_matter(dtype: npt.DTypeLike) -> None:
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
    assert sift_batch(candidates_KD[None], target_TD[None], steps=9, regularisation=0.1) == [
        expected
    ]


def choose_in(folder: Path, **environment: str) -> str:
    """What a new process chooses with the modules of that folder, and its errors; numba waits for
    the first choice.
    """
    script = (
        "import sys; from selection.strategies.sift import sift; "
        "import numpy as np; assert 'numba' not in sys.modules; "
        "print(sift(np.eye(3), np.ones((1, 3)), steps=3, regularisation=0.1).picks)"
    )
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "XDG_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the two modules alone, which need nothing else of the package."""
    package = tmp_path / "selection" / "strategies"
    package.mkdir(parents=True)
    (tmp_path / "selection" / "__init__.py").touch()
    (package / "__init__.py").touch()
    assert strategies.__file__
    for name in ("sift.py", "sift_numba.py"):
        shutil.copy(Path(strategies.__file__).with_name(name), package)
    return tmp_path


def test_it_needs_no_folder_for_its_machine_code(folder: Path) -> None:
    # Arrange: the folder beside the module and the user's are files, so nothing can be written
    # there.
    (folder / "selection" / "strategies" / "__pycache__").touch()
    (folder / "home").touch()

    assert choose_in(folder, HOME=str(folder / "home")) == "(0, 1, 2)\n"


def test_damaged_machine_code_is_compiled_anew(folder: Path) -> None:
    cache = folder / "cache"
    assert choose_in(folder, NUMBA_CACHE_DIR=str(cache)) == "(0, 1, 2)\n"
    kept = list(cache.rglob("*.nbc"))
    assert kept
    for file in kept:
        file.write_bytes(file.read_bytes()[:1000])

    assert choose_in(folder, NUMBA_CACHE_DIR=str(cache)) == "(0, 1, 2)\n"


@given(problems(), st.integers(0, 30), st.sampled_from([None, 0.05, 0.5]))
@settings(max_examples=40, deadline=None)
def test_a_choice_in_parts_is_the_choice_at_once(
    problem: tuple[Floats, Floats], steps: int, alpha: float | None
) -> None:
    whole = sift(*problem, steps=steps, regularisation=0.1, alpha=alpha)
    parts: list[int] = []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greedy_module, "_PART", 1)  # a step
        in_parts = sift(
            *problem,
            steps=steps,
            regularisation=0.1,
            alpha=alpha,
            between=lambda: parts.append(len(parts)),
        )

    assert in_parts == whole
    assert len(parts) >= len(whole.picks)


def test_a_choice_is_broken_off_between_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates_KD = np.eye(20, 30, dtype=np.float32)
    targets_TD = np.ones((2, 30), np.float32)
    monkeypatch.setattr(greedy_module, "_PART", 1)
    parts: list[int] = []

    def stop_at_the_third() -> None:
        parts.append(len(parts))
        if len(parts) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        sift(candidates_KD, targets_TD, steps=10, regularisation=0.1, between=stop_at_the_third)
    assert len(parts) == 3
