"""Checks of model files: each problem is one line, and the hub gets one request with a timeout."""

from __future__ import annotations

import json
import logging
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from adapters.config import TrainerConfig
from adapters.fingerprint import model_fingerprint
from adapters.model.base_model import BaseModel
from adapters.model_defaults import for_model, parameters_of, rank_here
from selection.config import AdapterShape, SelectorConfig
from selection.corpus.calibration import model_digest
from selection.corpus.corpus import Corpus
from selection.embedding import load_embedder
from selection.selector import Selector
from serving.config import bundled_model
from serving.errors import USER_ERRORS, ModelFilesError
from serving.settings.model_files import (
    adapter_shape,
    check_embedder,
    check_model,
    load_tokenizer,
    local_folder,
)
from serving.settings.settings import Settings
from tests.conftest import WordEmbedder
from tests.serving.commands import run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model, for a test to damage."""
    return Path(shutil.copytree(bundled_model(), tmp_path / "model"))


def test_valid_models_pass(model: Path) -> None:
    check_model(bundled_model())
    check_model(str(model))
    check_embedder("all-MiniLM-L6-v2", "/no/such/model")
    check_embedder("base-model", str(model))
    assert load_tokenizer(str(model)).is_fast


def _without(*names: str) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        for name in names:
            (model / name).unlink()

    return damage


def _pickled(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def _gguf(model: Path) -> None:
    shutil.rmtree(model)
    model.mkdir()
    (model / "nano-q4.gguf").write_bytes(b"GGUF" + bytes(100))


def _adapter(model: Path) -> None:
    shutil.rmtree(model)
    model.mkdir()
    (model / "adapter_config.json").write_text("{}")


def _short(model: Path) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[: len(content) // 2])


def _not_safetensors(model: Path) -> None:
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"what" + bytes(100))


def _empty(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"")


def _pointer(model: Path) -> None:
    (model / "model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n"
    )


def _part_missing(model: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def _config(**changes: Any) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        config.update(changes)
        (model / "config.json").write_text(
            json.dumps({k: v for k, v in config.items() if v is not None})
        )

    return damage


def _not_json(model: Path) -> None:
    (model / "config.json").write_text("<html>")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such folder"),
        (_without("config.json"), "it has no config.json"),
        (_without("tokenizer.json", "tokenizer_config.json"), "it has no tokenizer"),
        (_without("model.safetensors"), "it has no weights"),
        (_pickled, "its weights are only in pytorch_model.bin, a pickle file"),
        (
            _gguf,
            "it contains a GGUF file, which cannot be served: import it with `mayfly model import",
        ),
        (_adapter, "it is an adapter, not a base model"),
        (_short, r"model.safetensors has [\d,]+ bytes, not [\d,]+: download or copy it again"),
        (_not_safetensors, "model.safetensors is damaged: its header"),
        (_empty, "model.safetensors is damaged or incomplete"),
        (_pointer, "model.safetensors is a Git LFS pointer.*git lfs pull"),
        (_part_missing, "it lacks model-00002-of-00002.safetensors, which its index names"),
        (_not_json, "its config.json is not JSON"),
        (
            _config(model_type=None),
            "it is not in the format of transformers, its config.json has no `model_type`",
        ),
        (_config(architectures=["BertForMaskedLM"]), "it is not a causal .* names BertForMaskedLM"),
        (_config(architectures=["LlamaModel"]), "it is not a causal language model"),
    ],
)
def test_an_invalid_folder_is_reported_with_its_problem(
    model: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(model)

    with pytest.raises(
        ModelFilesError, match=f"^cannot load the model '{model}': .*{message}"
    ) as caught:
        check_model(str(model))

    assert "\n" not in str(caught.value)
    with pytest.raises(ModelFilesError, match="cannot load the model"):
        check_embedder("base-model", str(model))


def test_a_file_is_not_a_model(model: Path) -> None:
    (model.parent / "nano.gguf").write_bytes(b"GGUF" + bytes(100))
    (model.parent / "nano-without-ending").write_bytes(b"GGUF" + bytes(100))

    for name, message in {
        "nano.gguf": "it is a GGUF file",
        "nano-without-ending": "it is a GGUF file",
        "model/model.safetensors": "it is a file; name the folder",
        "missing.gguf": "it is a GGUF file",
        "model/../nowhere/x": "no such folder",
        "x" * 300: "File name too long",
    }.items():
        with pytest.raises(ModelFilesError, match=message):
            check_model(str(model.parent / name))


def test_an_invalid_embedder_is_reported(model: Path) -> None:
    _pickled(model)

    with pytest.raises(
        ModelFilesError, match=f"cannot load the embedder '{model}': its weights are only in"
    ):
        check_embedder(str(model), bundled_model())


def test_errors_of_the_libraries_are_one_line(model: Path, tmp_path: Path) -> None:
    _config(model_type="nanosaur", architectures=["NanosaurForCausalLM"])(model)
    (model / "tokenizer.json").write_text("{}")
    check_model(str(model))

    for load in (
        Settings(model=str(model), home=tmp_path).config,
        lambda: load_tokenizer(str(model)),
        lambda: BaseModel(str(model)),
        lambda: load_embedder("base-model", base_model=str(model)),
        lambda: load_embedder(str(model)),
        lambda: model_digest(str(model)),
        lambda: Selector(SelectorConfig(tmp_path, base_model=str(model))),
    ):
        with pytest.raises(
            USER_ERRORS,
            match=r"^cannot load the (model|base model|tokenizer|embedder|configuration)",
        ) as caught:
            load()
        assert "\n" not in str(caught.value)


def test_the_rank_from_the_headers_of_the_weights_is_that_of_the_model(
    tiny_llama: str, tiny_qwen: str, tiny_gpt2: str
) -> None:
    from transformers import AutoModelForCausalLM

    for folder in (bundled_model(), tiny_llama, tiny_qwen, tiny_gpt2):
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder)

        assert parameters_of(Path(folder)) == sum(each.numel() for each in loaded.parameters())
        assert rank_here(folder, local_folder(folder)) == for_model(folder).rank


class Hub:
    """A hub on this machine.

    Attributes:
        requests: path and Authorization header of each request.
        responses: status, headers and body, by path.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None]] = []
        self.responses: dict[str, tuple[int, dict[str, str], bytes]] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append((self.path, self.headers.get("Authorization")))
                status, headers, body = hub.responses.get(
                    self.path, (404, {"X-Error-Code": "RepoNotFound"}, b"")
                )
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def add(self, name: str, *files: str) -> None:
        """Add a model with these files."""
        content = json.dumps({"siblings": [{"rfilename": file} for file in files]}).encode()
        has_config = "config.json" in files
        self.responses[f"/{name}/resolve/main/config.json"] = (
            (200, {}, b"{}") if has_config else (404, {"X-Error-Code": "EntryNotFound"}, b"")
        )
        self.responses[f"/api/models/{name}"] = (200, {"Content-Type": "application/json"}, content)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub, with an empty local cache."""
    hub = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    yield hub
    hub.close()


def _cache(name: str, tmp_path: Path) -> Path:
    repository = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots").mkdir()
    return Path(shutil.copytree(bundled_model(), repository / "snapshots" / "abc"))


def test_a_valid_model_on_the_hub_passes(hub: Hub) -> None:
    hub.add("org/good", "config.json", "tokenizer.json", "model.safetensors")

    check_model("org/good")

    assert {key for _, key in hub.requests} == {"Bearer hf_secret"}
    assert len(hub.requests) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ("config.json", "tokenizer.json", "pytorch_model.bin"),
            "its weights are only in pytorch_model.bin",
        ),
        (("README.md", "q4.gguf"), "it contains a GGUF file"),
        (("README.md",), "it has no config.json"),
    ],
)
def test_the_files_of_a_model_on_the_hub_are_checked_before_they_are_downloaded(
    hub: Hub, files: tuple[str, ...], message: str
) -> None:
    hub.add("org/odd", *files)

    with pytest.raises(ModelFilesError, match=f"cannot load the model 'org/odd': {message}"):
        check_model("org/odd")


def test_private_and_gated_models_are_reported_with_what_the_token_lacks(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated = (401, {"X-Error-Code": "GatedRepo"}, b"")
    hub.responses["/org/gated/resolve/main/config.json"] = gated

    with pytest.raises(
        ModelFilesError, match=r"it is gated; accept its terms at .*/org/gated and set HF_TOKEN"
    ):
        check_model("org/gated")
    with pytest.raises(
        ModelFilesError,
        match=r"check its spelling, or, if it is private: the token in HF_TOKEN has no access",
    ):
        check_model("org/mistyped")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ModelFilesError, match="if it is private: set HF_TOKEN"):
        check_model("org/mistyped")


def test_a_busy_hub_is_left_to_the_libraries(hub: Hub) -> None:
    hub.responses["/org/good/resolve/main/config.json"] = (503, {}, b"")

    check_model("org/good")


def test_an_embedder_without_an_organisation_is_one_of_sentence_transformers(hub: Hub) -> None:
    hub.add("sentence-transformers/all-mpnet", "modules.json", "config.json", "model.safetensors")

    check_embedder("all-mpnet", "/no/such/model")

    with pytest.raises(
        ModelFilesError,
        match="cannot load the embedder 'all-mpned': it is neither a folder nor",
    ):
        check_embedder("all-mpned", "/no/such/model")


def test_without_the_hub_the_cache_is_used_with_a_warning(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cache("org/kept", tmp_path)
    hub.close()

    with caplog.at_level(logging.WARNING):
        check_model("org/kept")

    assert "cannot be reached" in caplog.text
    assert "using its copy in the hub's cache" in caplog.text
    # The libraries must not try to reach the hub either.
    assert constants.HF_HUB_OFFLINE is True
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(
        ModelFilesError,
        match=f"the hub at {hub.url} cannot be reached .*; name a folder, or go online",
    ):
        check_model("org/other")


def test_offline_no_request_is_made(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = _cache("org/kept", tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    check_model("org/kept")
    assert local_folder("org/kept") == snapshot
    with pytest.raises(
        ModelFilesError, match=r"nor in the hub's cache .*, and HF_HUB_OFFLINE is set"
    ):
        check_model("org/other")
    _short(snapshot)
    with pytest.raises(
        ModelFilesError, match=r"cannot load the model 'org/kept': model.safetensors has"
    ):
        check_model("org/kept")

    assert hub.requests == []


@pytest.mark.parametrize("command", [("serve",), ("plan",), ("corpus", "reembed", "nx")])
def test_an_unreachable_hub_is_reported_in_one_line(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    if command[0] == "corpus":
        Corpus.create(tmp_path / "corpora", "nx", WordEmbedder(), "tokenizer").close()
    option = "--embedder" if command[0] == "corpus" else "--model"

    ended = run(
        tmp_path,
        *command,
        option,
        "org/some-model",
        MAYFLY_HOME=str(tmp_path),
        MAYFLY_PORT="18702",
        HF_HUB_CACHE=str(tmp_path / "cache"),
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HUB_OFFLINE="",
    )

    assert ended.status == 1
    assert ended.err.count("\n") == 1
    assert (
        "'org/some-model': it is not a folder, and the hub at http://127.0.0.1:9 cannot be reached"
        in ended.err
    )
    assert ended.heavy == set()


def test_a_server_starts_from_adapters_of_its_own_model(model: Path) -> None:
    trainer = TrainerConfig(str(model), rank=8, targets=("q_proj",))

    shape = adapter_shape(trainer)

    assert shape == AdapterShape(model_fingerprint(Path(bundled_model())), 8, ("q_proj",))
    assert adapter_shape(TrainerConfig("org/not-on-this-machine")) is None
