"""The Dockerfiles, checked without building the images."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from serving.environment import MODEL_CACHE
from serving.http.gateway import HEALTH
from serving.settings.settings import Settings
from serving.settings.sources import variable

_REPOSITORY = Path(__file__).resolve().parents[2]
_CPU, _CUDA = "deploy/docker/cpu.Dockerfile", "deploy/docker/cuda.Dockerfile"
SETTINGS = {variable(each.name) for each in fields(Settings)} | {"MAYFLY_CONFIG", MODEL_CACHE}
_LISTS = "deploy/requirements"
both = pytest.mark.parametrize("file", [_CPU, _CUDA])


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, its lines joined; the stage is the number of its FROM."""

    stage: int
    name: str
    text: str


def instructions(file: str) -> list[Instruction]:
    """The instructions of a Dockerfile in order."""
    text = re.sub(r"^\s*#.*\n", "", (_REPOSITORY / file).read_text(), flags=re.MULTILINE)
    found: list[Instruction] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            found.append(
                Instruction(
                    sum(each.name == "FROM" for each in found) + (name == "FROM"), name, rest
                )
            )
    return found


def texts_of(file: str, name: str) -> list[str]:
    """The texts of the last stage's instructions with a name."""
    every = instructions(file)
    return [each.text for each in every if each.name == name and each.stage == every[-1].stage]


def environment(file: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(texts_of(file, "ENV"))))


def copied(file: str) -> set[str]:
    """The paths that are copied from the repository."""
    found = [each.text.split()[:-1] for each in instructions(file) if each.name == "COPY"]
    return {
        source.rstrip("/")
        for sources in found
        if not sources[0].startswith("--from=")
        for source in sources
    }


def commands(file: str) -> list[str]:
    runs = " && ".join(each.text for each in instructions(file) if each.name == "RUN")
    return [command.strip() for command in runs.split("&&")]


@both
def test_base_images_are_pinned_by_a_version(file: str) -> None:
    stages = {
        each.text.split(" AS ")[1]
        for each in instructions(file)
        if each.name == "FROM" and " AS " in each.text
    }
    bases = [each.text.split()[0] for each in instructions(file) if each.name == "FROM"]

    assert len(bases) > 1, "built in one stage, shipped in another"
    for base in set(bases) - stages:
        assert re.fullmatch(r"[\w./-]+:\d[\w.-]+(@sha256:\w{64})?", base), (
            f"{base} may be another image tomorrow"
        )


def test_the_image_installs_the_same_packages_as_make() -> None:
    makefile = (_REPOSITORY / "Makefile").read_text()
    made = dict(re.findall(r"^(\w+) := (\S+)$", makefile, flags=re.MULTILINE))
    installed = [
        command for command in commands(_CPU) if re.match(r"pip3? install|python3? -m pip", command)
    ]

    lists = {made["TORCH"], made["LOCK"], made["SMOLLM2"]}
    assert {words[-1] for words in map(str.split, installed)} == lists | {"."}
    assert lists == {
        str(each.relative_to(_REPOSITORY)) for each in (_REPOSITORY / _LISTS).iterdir()
    }
    for command in installed:
        assert "--no-deps" in command
        assert ("--require-hashes" in command) != ("--no-index" in command), command
    assert [each.text for each in instructions(_CPU) if each.name == "ARG"] == [
        f"TORCH_INDEX={made['TORCH_INDEX']}"
    ]
    assert [command for command in installed if "$TORCH_INDEX" in command] == [installed[0]]


@both
def test_the_image_contains_the_default_model(file: str) -> None:
    """It is not in the volume, where a folder of the host would hide it."""
    models = environment(file)[MODEL_CACHE]

    build = [each.text for each in instructions(file) if each.name in ("ENV", "RUN")]
    assert (
        build.index(f"{MODEL_CACHE}={models}")
        == next(number for number, text in enumerate(build) if "mayfly model install" in text) - 1
    )
    assert models.startswith("/opt/mayfly/")


def test_the_gpu_image_is_unpinned_only_until_there_is_a_list_for_it() -> None:
    lists = list((_REPOSITORY / _LISTS).glob("*cuda*")) + list((_REPOSITORY / _LISTS).glob("*gpu*"))
    unhashed = [
        command
        for command in commands(_CUDA)
        if command.startswith("pip install") and "--require-hashes" not in command
    ]

    assert unhashed == ['pip install ".[gpu,postgres]"'], (
        "the one exception, which the file's first lines explain"
    )
    assert not lists, f"{lists[0].name} exists: the image must install it with --require-hashes"


@both
def test_a_build_downloads_from_package_registries_only(file: str) -> None:
    programs = {command.split()[0] for command in commands(file)}

    assert programs <= {
        "apt-get",
        "rm",
        "python",
        "python3",
        "pip",
        "groupadd",
        "useradd",
        "install",
        "mayfly",
    }
    assert not [each for each in instructions(file) if each.name == "ADD"]
    assert not re.search(r"http", " ".join(commands(file)))


@both
def test_the_image_runs_as_an_unprivileged_user(file: str) -> None:
    (user,) = texts_of(file, "USER")
    uid, gid = map(int, user.split(":"))
    runs = " ".join(texts_of(file, "RUN"))

    assert min(uid, gid) >= 10_000, (
        "numbers that no host gives to its own users, and no names: Kubernetes checks them"
    )
    assert f"--gid {gid} mayfly" in runs
    assert f"--uid {uid} " in runs, "the caches of PyTorch ask for the user's name"
    assert not re.search(r"chmod|--chown|sudo|setcap", (_REPOSITORY / file).read_text())


@both
def test_everything_is_written_to_the_volume_which_the_user_owns(file: str) -> None:
    (volume,) = texts_of(file, "VOLUME")
    (user,) = texts_of(file, "USER")
    owner, group = user.split(":")
    told_environment = environment(file)

    assert told_environment["MAYFLY_HOME"] == volume
    assert all(
        (told_environment[name] + "/").startswith(f"{volume}/") for name in ("HOME", "HF_HOME")
    )
    made = next(command for command in commands(file) if command.startswith("install "))
    assert made.split()[-1] == volume
    assert f"--owner {owner} --group {group}" in made
    names = [each.name for each in instructions(file)]
    assert names.index("VOLUME") > names.index("RUN"), (
        "what is done to a volume after its declaration is lost"
    )


@both
def test_copied_files_are_in_the_repository(file: str) -> None:
    assert copied(file)
    for source in copied(file):
        assert (_REPOSITORY / source).exists(), source


def test_the_build_context_contains_only_copied_files() -> None:
    lines = (_REPOSITORY / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]

    assert patterns[0] == "*", "everything is left out first"
    assert {pattern[1:] for pattern in patterns if pattern.startswith("!")} == copied(
        _CPU
    ) | copied(_CUDA)
    assert [pattern for pattern in patterns[1:] if not pattern.startswith("!")] == [
        "**/__pycache__"
    ]


@both
def test_a_wheel_can_be_built_from_the_copied_files(file: str) -> None:
    pyproject = (_REPOSITORY / "pyproject.toml").read_text()
    (packages,) = re.findall(r"^packages = (\[.*\])$", pyproject, flags=re.MULTILINE)
    (forced,) = re.findall(r'^"([^"]+)" = "serving/nano"$', pyproject, flags=re.MULTILINE)

    assert {*json.loads(packages), forced, "pyproject.toml", "README.md", "LICENSE"} <= copied(file)


@both
def test_variables_are_settings_or_those_of_the_makefile(file: str) -> None:
    variables = environment(file)
    makefile = (_REPOSITORY / "Makefile").read_text()

    named = set(re.findall(r"MAYFLY_\w+", (_REPOSITORY / file).read_text()))
    assert named <= SETTINGS, f"{named - SETTINGS} is not a setting"
    assert variables["MAYFLY_HOST"] == "0.0.0.0"
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        assert f"export {name} := {variables[name]}\n" in makefile
    assert (variables["RAY_USAGE_STATS_ENABLED"], variables["VLLM_NO_USAGE_STATS"]) == ("0", "1")


def test_the_gpu_image_has_a_compiler_for_vllm() -> None:
    # On a CPU the engine sees to it that nothing is compiled (tests/engine runs without a
    # compiler).
    assert "g++" not in " ".join(commands(_CPU))
    assert " g++ " in " ".join(commands(_CUDA))


@both
def test_the_health_check_requests_a_route_without_keys(file: str) -> None:
    (check,) = texts_of(file, "HEALTHCHECK")
    (port,) = texts_of(file, "EXPOSE")
    program, _, source = json.loads(check.partition("CMD ")[2])
    (path,) = re.findall(r"'GET', '([^']+)'", source)

    assert program == "python"
    assert path == HEALTH
    assert environment(file)["MAYFLY_PORT"] == port
    assert "os.environ['MAYFLY_PORT']" in source


@both
@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_succeeds_with_a_healthy_server(
    file: str, status: int, healthy: bool
) -> None:
    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

    _, _, source = json.loads(texts_of(file, "HEALTHCHECK")[0].partition("CMD ")[2])
    with HTTPServer(("127.0.0.1", 0), Door) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        ran = subprocess.run(
            [sys.executable, "-c", source], env={"MAYFLY_PORT": str(server.server_port)}
        )

    assert (ran.returncode == 0) is healthy


@both
def test_the_health_check_fails_without_a_server(file: str) -> None:
    _, _, source = json.loads(texts_of(file, "HEALTHCHECK")[0].partition("CMD ")[2])
    # The port is bound, but no program listens.
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        environment = {"MAYFLY_PORT": str(unused.getsockname()[1])}
        ran = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True)

    assert ran.returncode != 0


@both
def test_the_image_runs_mayfly_serve(file: str) -> None:
    pyproject = (_REPOSITORY / "pyproject.toml").read_text()

    assert [json.loads(text) for text in texts_of(file, "ENTRYPOINT")] == [["mayfly"]]
    assert [json.loads(text) for text in texts_of(file, "CMD")] == [["serve"]]
    assert 'mayfly = "serving.cli.main:main"' in pyproject
    assert environment(file)["PATH"].startswith("/opt/mayfly/bin:")
    assert "--from=build /opt/mayfly /opt/mayfly" in texts_of(file, "COPY")


@both
def test_the_first_lines_contain_the_commands_to_build_and_run_it(file: str) -> None:
    head = (_REPOSITORY / file).read_text().partition("\nFROM ")[0]

    run = next(line for line in head.splitlines() if "docker run" in line)
    assert {"--init", "--shm-size", "MAYFLY_API_KEYS=..."} <= set(run.split())
    assert "-p 127.0.0.1:" in run
    assert f"docker build -f {file} " in head
