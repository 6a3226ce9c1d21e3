"""A wrong model is one line that names what is wrong, by its files alone; the hub is asked once,
and not for long.
"""

from __future__ import annotations

import json
import logging
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from adapters.model.base_model import BaseModel
from adapters.model_defaults import for_model, parameters_of, rank_here
from selection.config import SelectorConfig
from selection.corpus.calibration import model_digest
from selection.embedding import load_embedder
from selection.selector import Selector
from serving.cli.failures import OURS
from serving.config import bundled_model
from serving.errors import ModelFilesError
from serving.settings.model_files import check_embedder, check_model, load_tokenizer, local_folder
from serving.settings.settings import Settings
from tests.serving.commands import run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model, to be spoilt."""
    return Path(shutil.copytree(bundled_model(), tmp_path / "model"))


def test_what_is_sound_is_let_through(model: Path) -> None:
    check_model(bundled_model())
    check_model(str(model))
    check_embedder("all-MiniLM-L6-v2", "/no/such/model")
    check_embedder("base-model", str(model))
    assert load_tokenizer(str(model)).is_fast


def _without(*names: str) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        for name in names:
            (model / name).unlink()

    return spoil


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
    def spoil(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        config.update(changes)
        (model / "config.json").write_text(
            json.dumps({k: v for k, v in config.items() if v is not None})
        )

    return spoil


def _not_json(model: Path) -> None:
    (model / "config.json").write_text("<html>")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, "there is no such folder"),
        (_without("config.json"), "it has no config.json"),
        (_without("tokenizer.json", "tokenizer_config.json"), "it has no tokenizer"),
        (_without("model.safetensors"), "it has no weights"),
        (_pickled, "its weights only in pytorch_model.bin, and nothing is unpickled here"),
        (
            _gguf,
            "it holds a GGUF file, which is not served directly: convert it .* `from_pretrained",
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
            "it is not in transformers' format, its config.json has no `model_type`",
        ),
        (_config(architectures=["BertForMaskedLM"]), "it is not a causal .* names BertForMaskedLM"),
        (_config(architectures=["LlamaModel"]), "it is not a causal language model"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named_with_what_is_wrong(
    model: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(model)

    with pytest.raises(
        ModelFilesError, match=f"^cannot load the model '{model}': .*{said}"
    ) as caught:
        check_model(str(model))

    assert "\n" not in str(caught.value)
    with pytest.raises(ModelFilesError, match="cannot load the model"):
        check_embedder("base-model", str(model))


def test_a_file_is_no_model(model: Path) -> None:
    (model.parent / "nano.gguf").write_bytes(b"GGUF" + bytes(100))
    (model.parent / "nano-without-ending").write_bytes(b"GGUF" + bytes(100))

    for name, said in {
        "nano.gguf": "it is a GGUF file",
        "nano-without-ending": "it is a GGUF file",
        "model/model.safetensors": "it is a file; name the folder",
        "missing.gguf": "it is a GGUF file",
        "model/../nowhere/x": "there is no such folder",
        "x" * 300: "File name too long",
    }.items():
        with pytest.raises(ModelFilesError, match=said):
            check_model(str(model.parent / name))


def test_an_embedder_that_cannot_be_used_is_named(model: Path) -> None:
    _pickled(model)

    with pytest.raises(
        ModelFilesError, match=f"cannot load the embedder '{model}': it has its weights only in"
    ):
        check_embedder(str(model), bundled_model())


def test_what_only_the_libraries_know_is_one_line_too(model: Path, tmp_path: Path) -> None:
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
            OURS, match=r"^cannot load the (model|base model|tokenizer|embedder|configuration)"
        ) as caught:
            load()
        assert "\n" not in str(caught.value)


def test_the_rank_by_the_weights_headers_is_that_of_the_model(
    tiny_llama: str, tiny_qwen: str, tiny_gpt2: str
) -> None:
    from transformers import AutoModelForCausalLM

    for folder in (bundled_model(), tiny_llama, tiny_qwen, tiny_gpt2):
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder)

        assert parameters_of(Path(folder)) == sum(each.numel() for each in loaded.parameters())
        assert rank_here(folder, local_folder(folder)) == for_model(folder).rank


class Hub:
    """A hub on this machine; `answers` by path: status, headers, body."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append((self.path, self.headers.get("Authorization")))
                status, headers, body = hub.answers.get(
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

    def holds(self, name: str, *files: str) -> None:
        """A model of these files."""
        siblings = json.dumps({"siblings": [{"rfilename": file} for file in files]}).encode()
        there = "config.json" in files
        self.answers[f"/{name}/resolve/main/config.json"] = (
            (200, {}, b"{}") if there else (404, {"X-Error-Code": "EntryNotFound"}, b"")
        )
        self.answers[f"/api/models/{name}"] = (200, {"Content-Type": "application/json"}, siblings)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub, and an empty cache of it."""
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


def test_a_model_of_the_hub_is_let_through(hub: Hub) -> None:
    hub.holds("org/good", "config.json", "tokenizer.json", "model.safetensors")

    check_model("org/good")

    assert {key for _, key in hub.asked} == {"Bearer hf_secret"}
    assert len(hub.asked) == 2


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ("config.json", "tokenizer.json", "pytorch_model.bin"),
            "it has its weights only in pytorch_model.bin",
        ),
        (("README.md", "q4.gguf"), "it holds a GGUF file"),
        (("README.md",), "it has no config.json"),
    ],
)
def test_what_the_hub_holds_is_looked_at_before_it_is_downloaded(
    hub: Hub, files: tuple[str, ...], said: str
) -> None:
    hub.holds("org/odd", *files)

    with pytest.raises(ModelFilesError, match=f"cannot load the model 'org/odd': {said}"):
        check_model("org/odd")


def test_what_the_hub_does_not_show_is_said_with_the_token(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated = (401, {"X-Error-Code": "GatedRepo"}, b"")
    hub.answers["/org/gated/resolve/main/config.json"] = gated

    with pytest.raises(
        ModelFilesError, match=r"it is gated; accept its terms at .*/org/gated, and set HF_TOKEN"
    ):
        check_model("org/gated")
    with pytest.raises(
        ModelFilesError,
        match=r"check its spelling, or it is private, which the token in HF_TOKEN may",
    ):
        check_model("org/mistyped")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ModelFilesError, match="whose readers need HF_TOKEN"):
        check_model("org/mistyped")


def test_a_hub_that_is_busy_is_left_to_the_libraries(hub: Hub) -> None:
    hub.answers["/org/good/resolve/main/config.json"] = (503, {}, b"")

    check_model("org/good")


def test_a_short_name_of_an_embedder_is_one_of_sentence_transformers(hub: Hub) -> None:
    hub.holds("sentence-transformers/all-mpnet", "modules.json", "config.json", "model.safetensors")

    check_embedder("all-mpnet", "/no/such/model")

    with pytest.raises(
        ModelFilesError,
        match="cannot load the embedder 'all-mpned': it is neither a folder here nor",
    ):
        check_embedder("all-mpned", "/no/such/model")


def test_without_a_hub_the_cache_serves_and_says_so(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cache("org/kept", tmp_path)
    hub.close()

    with caplog.at_level(logging.WARNING):
        check_model("org/kept")

    assert "cannot be reached" in caplog.text
    assert "its copy in the hub's cache is used" in caplog.text
    assert constants.HF_HUB_OFFLINE is True  # the libraries ask no more
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(
        ModelFilesError,
        match=f"the hub at {hub.url} cannot be reached .*; name a folder, or go online",
    ):
        check_model("org/other")


def test_offline_nothing_is_asked(
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

    assert hub.asked == []


@pytest.mark.parametrize("command", [("serve",), ("plan",), ("corpus", "reembed", "nx")])
def test_a_hub_that_is_not_there_is_told_in_one_line_at_once(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    if command[0] == "corpus":
        make = "import sys; from pathlib import Path; from tests.conftest import WordEmbedder; "
        make += "from selection.corpus.corpus import Corpus; Corpus.create(Path(sys.argv[1]), 'nx', WordEmbedder(), 't')"
        subprocess.run([sys.executable, "-c", make, str(tmp_path / "corpora")], check=True)
    option = "--embedder" if command[0] == "corpus" else "--model"

    ended = run(
        tmp_path, *command, option, "org/some-model", MAYFLY_HOME=str(tmp_path), HF_HUB_CACHE=str(tmp_path / "cache"),
        HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="", MAYFLY_PORT="21650",
    )  # fmt: skip

    assert ended.status == 1
    assert ended.err.count("\n") == 1
    assert (
        "'org/some-model': it is not a folder here, and the hub at http://127.0.0.1:9 cannot be reached"
        in ended.err
    )
    assert ended.heavy == set()
