"""The command `mayfly` end to end: a corpus from files, a server on Ray Serve, clients, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import numpy as np
import openai
import psutil
import pytest

from selection.corpus.sqlite_store import SQLiteStore
from serving.app import application
from serving.cli import main
from serving.errors import StartError
from serving.models.catalogue import NANO, SMOLLM2
from tests.embeddings import ROUNDING
from tests.engine.shared_memory import left_in_shared_memory

MAYFLY = [str(Path(sys.executable).with_name("mayfly"))]
UNADAPTED = {"Compute-Budget": "none"}
README = Path(__file__).parents[2] / "README.md"
Command = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Running:
    """`mayfly serve` in a process of its own.

    Attributes:
        url: its URL.
        process: the process.
        stderr: the file of its standard error.
    """

    url: str
    process: subprocess.Popen[bytes]
    stderr: Path

    def descendants(self) -> set[int]:
        """The ids of all processes that it has started."""
        return {child.pid for child in psutil.Process(self.process.pid).children(recursive=True)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpus `notes`, made by the command from a folder of this repository."""
    home = tmp_path_factory.mktemp("home")
    sources = README.parent / "selection" / "library" / "uploads"
    made = _mayfly(home, "corpus", "add", "notes", str(sources))
    assert made.returncode == 0, made.stderr
    assert re.search(r"corpus notes: added \d+ documents, \d+ sequences", made.stdout)
    return home


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[Running]:
    """The server; Ctrl-C stops it, and nothing of it may be left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before, temporary = set(os.listdir("/dev/shm")), tempfile.mkdtemp(prefix="m-", dir="/tmp")
    log = home / "stderr"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [
                *MAYFLY,
                "serve",
                "--corpus",
                "notes",
                "--port",
                str(port),
                "--max-model-len",
                "1024",
                "--home",
                str(home),
            ],
            stderr=stderr,
            env={**os.environ, "TMPDIR": temporary},
            start_new_session=True,
        )
    while "\nready" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    server = Running(f"http://127.0.0.1:{port}", process, log)
    descendants = server.descendants()
    yield server
    descendants |= server.descendants()
    body = {
        "model": "nano",
        "prompt": "import",
        "max_tokens": 300,
        "ignore_eos": True,
        "stream": True,
    }
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json=body, headers=UNADAPTED, timeout=60
    ) as answer:
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        # A terminal sends Ctrl-C to the whole process group.
        os.killpg(process.pid, signal.SIGINT)
        assert list(lines)[-1] == "data: [DONE]", "an answer in progress was not completed"
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=60)
    _, alive = psutil.wait_procs(
        [psutil.Process(pid) for pid in descendants if psutil.pid_exists(pid)], timeout=10
    )
    assert alive == []
    assert left_in_shared_memory(before) == set()
    # All servers of a user share the cache of torch.
    assert [each for each in os.listdir(temporary) if not each.startswith("torchinductor_")] == []
    assert log.read_text().splitlines()[-1] == "ended"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture
def mayfly_here(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs `mayfly` in this process, which has imported torch and transformers already."""
    monkeypatch.setenv("MAYFLY_HOME", str(home))
    # It would come too late for torch.
    monkeypatch.setattr(main, "set_environment", lambda cores: None)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["mayfly", *arguments])
        with pytest.raises(SystemExit) as end:
            main.main()
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(
            sys.argv, int(end.value.code or 0), printed.out, printed.err
        )

    return run


def test_the_line_that_reports_the_start_names_the_model_and_the_reason(running: Running) -> None:
    (ready,) = (line for line in running.stderr.read_text().splitlines() if "ready" in line[:5])
    reason = "smollm2 is not installed, `make install` brings it"
    assert ready == f"ready nano ({reason}) at {running.url}/v1 (Ctrl-C stops the server)"


def test_rays_ports_are_on_loopback_or_require_a_token(running: Running) -> None:
    listening = {
        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for pid in running.descendants() | {running.process.pid}
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {ip for ip, _ in listening} <= {"127.0.0.1", "::1", "::"}

    between_replicas = [port for ip, port in listening if ip == "::"]
    # One each of the engine, the selector and the trainer.
    assert len(between_replicas) >= 3
    for port in between_replicas:
        with (
            grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
            pytest.raises(grpc.RpcError) as refused,
        ):
            channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=10)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_openai_python_chats(running: Running) -> None:
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none")
    answer = client.chat.completions.create(
        model="nano",
        messages=[{"role": "user", "content": "class Index:\n"}],
        max_tokens=8,
        temperature=0,
        extra_headers={"Compute-Budget": "steps=3, seconds=20"},
        extra_body={"adaptation": {"corpus": "notes", "seed": 1}},
    )
    report = (answer.model_extra or {})["adaptation"]
    assert answer.choices[0].message.content
    assert report["adapted"] is True
    assert report["spent"]["steps"] == 3
    assert all(
        source["name"].startswith("selection/library/uploads/") for source in report["sources"]
    )


def test_openai_python_streams(running: Running) -> None:
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none")
    chunks = list(
        client.chat.completions.create(
            model="nano",
            messages=[{"role": "user", "content": "def sift("}],
            max_tokens=8,
            temperature=0,
            stream=True,
            extra_headers={"Compute-Budget": "steps=2"},
        )
    )
    assert (chunks[0].model_extra or {})["adaptation"]["spent"]["steps"] == 2
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_openai_python_completes(running: Running) -> None:
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none")
    raw = client.completions.with_raw_response.create(
        model="nano",
        prompt="import numpy as ",
        max_tokens=4,
        temperature=0,
        extra_headers={"Compute-Budget": "none"},
    )
    assert raw.parse().choices[0].text
    assert raw.headers["compute-spent"].startswith("steps=0")
    assert len(raw.headers.get_list("x-request-id")) == 1


def test_openai_python_parses_our_errors(running: Running) -> None:
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none")
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(
            model="nano", prompt="a", extra_headers={"Compute-Budget": "lots"}
        )
    assert bad.value.code == "invalid_compute_budget"
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(
            model="nano", prompt="a", extra_body={"adaptation": {"corpus": "nowhere"}}
        )
    assert "nowhere" in str(missing.value)
    assert "Traceback" not in str(missing.value)


def test_a_client_that_disconnects_during_training_frees_the_trainer(running: Running) -> None:
    descendants = running.descendants()
    in_training = re.compile(r'mayfly_requests_in_stage\{.*stage="train"\} [1-9]')

    def is_in_training() -> bool:
        return in_training.search(httpx.get(f"{running.url}/metrics").text) is not None

    url = httpx.URL(running.url)
    body = json.dumps({"model": "nano", "prompt": "class A:\n", "max_tokens": 4})
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {url.host}:{url.port}\r\n"
        "Content-Type: application/json\r\nCompute-Budget: steps=50\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    for _ in range(3):
        with socket.create_connection((url.host, url.port)) as client:
            client.sendall((head + body).encode())
            _wait_until(is_in_training, interval=0.01)
        _wait_until(lambda: not is_in_training())
    reply = httpx.post(
        f"{running.url}/v1/completions",
        headers={"Compute-Budget": "steps=1, seconds=60"},
        json={"model": "nano", "prompt": "class A:\n", "max_tokens": 4},
        timeout=60,
    )
    assert reply.json()["adaptation"]["adapted"] is True
    assert running.descendants() == descendants


def test_documents_added_while_it_runs_are_used(
    running: Running, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "zebra.py").write_text(
        "def zebra_stripes(count):\n    return 'zebra stripes ' * count\n" * 4
    )
    assert _mayfly(home, "corpus", "add", "notes", str(tmp_path / "zebra.py")).returncode == 0
    reply = httpx.post(
        f"{running.url}/v1/completions",
        headers={"Compute-Budget": "steps=1"},
        json={"model": "nano", "prompt": "def zebra_stripes(count):\n", "max_tokens": 1},
        timeout=60,
    )
    assert reply.json()["adaptation"]["sources"][0]["name"] == "zebra.py"


def test_the_python_of_the_readme_runs(running: Running) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    code = code.replace("http://127.0.0.1:8000", running.url).replace('"nx"', '"notes"')
    code = code.replace(f'"{SMOLLM2}"', f'"{NANO}"')
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"'steps': [1-9]", ran.stdout)


def test_the_chat_command_of_the_readme_answers_and_reports(
    running: Running, home: Path, tmp_path: Path
) -> None:
    (line,) = re.findall(r"^\.venv/bin/mayfly (chat .*)$", README.read_text(), re.MULTILINE)
    ran = _mayfly(
        home, *shlex.split(line.replace("nx", "notes")), "--url", f"{running.url}/v1", cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
    # Whether `auto` takes steps depends on the text of this repository.
    assert "loss of the prompt" in ran.stderr


def test_requests_are_checked_before_rays_router(running: Running) -> None:
    hidden = httpx.get(f"{running.url}/-/routes")
    impatient = httpx.post(
        f"{running.url}/v1/completions",
        headers={"Compute-Budget": "steps=3", "X-Request-Timeout-Seconds": "0.001"},
        json={"model": "nano", "prompt": "class A:\n", "max_tokens": 4},
        timeout=60,
    )
    large = httpx.get(f"{running.url}/health", headers={"X-Much": "a" * 100_000})
    page = httpx.get(running.url)
    assert (hidden.status_code, hidden.json()["error"]["code"]) == (404, "unknown_url")
    assert impatient.status_code == 200
    assert (large.status_code, large.json()["error"]["type"]) == (431, "invalid_request_error")
    assert "text/html" in page.headers["content-type"]
    assert "'self'" in page.headers["content-security-policy"]


def test_a_corpus_may_change_its_embedder(mayfly_here: Command, tmp_path: Path) -> None:
    (tmp_path / "one.md").write_text("# One\n\nA text about one thing.\n")
    assert mayfly_here("corpus", "add", "moved", str(tmp_path)).returncode == 0
    done = mayfly_here("corpus", "reembed", "moved", "--embedder", "base-model")
    refused = mayfly_here("corpus", "add", "moved", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert re.search(r"moved\s+1\s+1\s+base-model", mayfly_here("corpus", "list").stdout)
    assert refused.returncode == 1
    assert "mayfly corpus reembed moved" in refused.stderr


def test_a_corpus_embedded_on_ray_is_the_same(home: Path, mayfly_here: Command) -> None:
    # More sequences than a worker embeds at once, all of them short.
    folder = README.parent / "adapters" / "loop"
    sources = [str(folder / name) for name in ("fair_lock.py", "model_lock.py", "gradients.py")]
    short = ["--max-length", "16"]
    here = mayfly_here("corpus", "add", "here", *sources, *short)
    spread = _mayfly(home, "corpus", "add", "spread", *sources, *short, "--ray")
    assert spread.returncode == 0, spread.stderr
    assert spread.stdout == here.stdout.replace("corpus here", "corpus spread")
    assert "core_worker" not in spread.stderr
    ids, vectors = SQLiteStore(home / "corpora" / "here").embeddings()
    ids_on_ray, vectors_on_ray = SQLiteStore(home / "corpora" / "spread").embeddings()
    assert len(ids) > 64
    assert ids.tolist() == ids_on_ray.tolist()
    np.testing.assert_allclose(vectors_on_ray, vectors, atol=ROUNDING)


def test_list_show_and_remove(mayfly_here: Command, tmp_path: Path) -> None:
    (tmp_path / "one.md").write_text("# One\n\nA text about one thing.\n")
    (tmp_path / "two.jsonl").write_text(
        '{"text": "a first row of words", "id": "r1"}\n{"text": "a second row of words"}\n'
    )
    (tmp_path / "broken.jsonl").write_text("{not json\n")
    added = mayfly_here("corpus", "add", "small", str(tmp_path))
    again = mayfly_here("corpus", "add", "small", str(tmp_path))
    shown = mayfly_here("corpus", "show", "small").stdout
    assert added.returncode == 0
    assert "added 3 documents" in added.stdout
    assert "broken.jsonl" in added.stderr
    assert "3 were already there" in again.stdout
    assert "two.jsonl#r1" in shown
    document = next(word for word in shown.split() if word.endswith("one.md"))
    assert mayfly_here("corpus", "remove", "small", "--document", document).returncode == 0
    assert "one.md" not in mayfly_here("corpus", "show", "small").stdout
    assert re.search(r"small\s+2\s+2\s+all-MiniLM-L6-v2", mayfly_here("corpus", "list").stdout)
    assert mayfly_here("corpus", "remove", "small", "--yes").returncode == 0
    assert "small" not in mayfly_here("corpus", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("corpus", "add", "x", "--package", "no_such_package"), "no installed Python package"),
        (("corpus", "add", "bad name", "."), "not a corpus name"),
        (("serve", "--port", "1", "--host", "203.0.113.1"), "cannot listen on"),
    ],
)
def test_invalid_input_is_one_line(home: Path, arguments: tuple[str, ...], message: str) -> None:
    ran = _mayfly(home, *arguments)
    assert ran.returncode == 1
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1


def test_flags_that_vllm_does_not_know_are_refused_before_anything_starts(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings.toml").write_text("[vllm]\nmax-num-batched-tokns = 5\n")
    ran = _mayfly(home, "serve", "--config", str(tmp_path / "settings.toml"))
    monkeypatch.setenv("MAYFLY_API_KEYS", "secret")
    with pytest.raises(StartError) as refused:
        application({"home": str(home), "vllm": {"max-num-batched-tokns": 5}})

    message = (
        "vLLM refuses the flags after `--`: unrecognized arguments: --max-num-batched-tokns=5; "
        "did you mean --max-num-batched-tokens?"
    )
    assert ran.returncode == 1
    assert ran.stderr.endswith(f"\nmayfly: {message}\n")
    assert "Ray" not in ran.stderr
    assert str(refused.value) == message


def test_a_flag_that_does_not_suit_the_model_ends_the_start_at_once(home: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ran = _mayfly(home, "serve", "--port", port, "--", "--max-num-batched-tokens", "5")

    assert ran.returncode == 1
    refusal = "vLLM refuses its configuration: .*max_num_batched_tokens"
    assert len(re.findall(f"engine: cannot start: {refusal}", ran.stderr)) == 1
    assert re.search(f"^mayfly: the server did not start: engine: {refusal}", ran.stderr, re.M)


def test_version_and_help() -> None:
    version = subprocess.run([*MAYFLY, "--version"], capture_output=True, text=True, check=True)
    help_ = subprocess.run([*MAYFLY, "--help"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"mayfly \d+\.\d+\.\d+\n", version.stdout)
    assert all(command in help_.stdout for command in ("corpus", "serve", "demo"))


def test_an_engine_that_dies_while_it_loads_an_adapter_is_reported_and_replaced(
    running: Running,
) -> None:
    """The last test of this server: its processes are replaced."""
    (core,) = [
        each
        for each in psutil.Process(running.process.pid).children(recursive=True)
        if "EngineCore" in " ".join(each.cmdline())
    ]
    body = {"model": "nano", "prompt": "class A:\n", "max_tokens": 4}
    core.suspend()
    with ThreadPoolExecutor(1) as thread:
        request = thread.submit(
            httpx.post,
            f"{running.url}/v1/completions",
            json=body,
            headers={"Compute-Budget": "steps=1"},
            timeout=60,
        )
        loading = re.compile(r'mayfly_requests_in_stage\{.*stage="load"\} 1\.0')
        while not request.done() and not loading.search(httpx.get(f"{running.url}/metrics").text):
            time.sleep(0.02)
        core.kill()
        answer = request.result()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "engine_restarting"
    _wait_until(lambda: "POST /v1/completions 503" in running.stderr.read_text())
    assert "the engine has stopped" in running.stderr.read_text()
    assert "ray" not in running.stderr.read_text().split("ready", 1)[1].lower()

    def is_adapted() -> bool:
        reply = httpx.post(
            f"{running.url}/v1/completions",
            json=body,
            headers={"Compute-Budget": "steps=1"},
            timeout=60,
        )
        return reply.status_code == 200 and bool(reply.json()["adaptation"]["adapted"])

    _wait_until(is_adapted, seconds=180)


def _wait_until(condition: Callable[[], bool], seconds: float = 60, interval: float = 0.1) -> None:
    """Wait for a condition, and fail if it does not hold within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(interval)


def _mayfly(
    home: Path, *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    # A test that runs at the same time may have a Ray cluster that others would find.
    environment = {
        **os.environ,
        "MAYFLY_HOME": str(home),
        "COLUMNS": "200",
        "RAY_ADDRESS": "local",
    }
    return subprocess.run(
        [*MAYFLY, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=cwd,
    )
