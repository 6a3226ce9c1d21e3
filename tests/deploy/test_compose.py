"""The compose file, as far as it tells: every name in it means something, and nothing in it is
open. It is not run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.local import server, supervisor
from serving.local.server import STORE_BYTES
from tests.deploy.test_dockerfiles import SETTINGS, environment, texts_of

_DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
_COMPOSE: dict[str, Any] = yaml.safe_load((_DEPLOY / "compose.yaml").read_text())
_SERVICES: dict[str, dict[str, Any]] = _COMPOSE["services"]
_MAYFLY, _PROMETHEUS, _GRAFANA = (_SERVICES[name] for name in ("mayfly", "prometheus", "grafana"))
_IMAGE = "deploy/docker/cpu.Dockerfile"
_UNITS = {"m": 1 << 20, "g": 1 << 30}
every_service = pytest.mark.parametrize("service", _SERVICES.values(), ids=_SERVICES)


def size(text: str) -> int:
    return int(text[:-1]) * _UNITS[text[-1]]


def seconds(text: str) -> int:
    return int(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


def mounted(service: dict[str, Any]) -> dict[str, Path]:
    """The files of this repository that a service mounts, by their paths in the container."""
    binds = [volume.split(":") for volume in service["volumes"] if volume.startswith(".")]
    assert all(options == ["ro"] for _, _, *options in binds), "nothing changes the repository"
    return {target: (_DEPLOY / source).resolve() for source, target, *_ in binds}


def in_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@every_service
def test_images_are_pinned_or_built_from_an_existing_file(service: dict[str, Any]) -> None:
    if "build" in service:
        context = (_DEPLOY / service["build"]["context"]).resolve()
        assert (context / ".dockerignore").is_file()
        assert (context / service["build"]["dockerfile"]).is_file()
        assert "image" not in service
    else:
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+(@sha256:\w{64})?", service["image"])


@every_service
def test_ports_are_published_on_loopback_only(service: dict[str, Any]) -> None:
    assert service["ports"]
    for port in service["ports"]:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port
    assert "network_mode" not in service


@every_service
def test_every_service_has_resource_limits(service: dict[str, Any]) -> None:
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert size(service["mem_limit"]) > 0
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "user"} & set(service)


@every_service
def test_file_systems_are_read_only_except_where_compose_writes_a_secret(
    service: dict[str, Any],
) -> None:
    # Compose refuses a secret from the environment in a read-only service: it copies it in when the
    # container is there.
    written = [
        name for name in service.get("secrets", ()) if "environment" in _COMPOSE["secrets"][name]
    ]

    assert service.get("read_only", False) is not bool(written)
    if service.get("read_only"):
        assert any(mount.split(":")[0] == "/tmp" for mount in service["tmpfs"])


@every_service
def test_mounted_files_exist(service: dict[str, Any]) -> None:
    for path in mounted(service).values():
        assert path.is_file(), f"{path} is missing; Docker would make a folder of that name"
        assert path.is_relative_to(_DEPLOY)
    named = {volume.split(":")[0] for volume in service["volumes"] if not volume.startswith(".")}
    assert named <= set(_COMPOSE["volumes"])
    assert set(service.get("secrets", ())) <= set(_COMPOSE["secrets"])


def test_every_declared_volume_and_secret_is_used() -> None:
    had = {volume.split(":")[0] for service in _SERVICES.values() for volume in service["volumes"]}

    assert set(_COMPOSE["volumes"]) <= had
    assert set(_COMPOSE["secrets"]) == {
        name for service in _SERVICES.values() for name in service.get("secrets", ())
    }


def test_the_service_agrees_with_its_image() -> None:
    (volume,) = texts_of(_IMAGE, "VOLUME")
    (port,) = texts_of(_IMAGE, "EXPOSE")

    assert _MAYFLY["build"]["dockerfile"] == _IMAGE
    assert _MAYFLY["volumes"] == [f"mayfly:{volume}"]
    assert [published.rsplit(":")[-1] for published in _MAYFLY["ports"]] == [port]
    assert texts_of(_IMAGE, "HEALTHCHECK"), "the compose file has none"
    assert "healthcheck" not in _MAYFLY


def test_mayfly_does_not_start_without_a_key() -> None:
    assert environment(_IMAGE)["MAYFLY_HOST"] == "0.0.0.0"
    assert re.fullmatch(
        r"\$\{MAYFLY_API_KEYS:\?[^{}$]+\}", _MAYFLY["environment"]["MAYFLY_API_KEYS"]
    )


def test_variables_of_mayfly_are_settings() -> None:
    named = set(re.findall(r"MAYFLY_\w+", (_DEPLOY / "compose.yaml").read_text())) - {"MAYFLY_"}

    assert named
    assert named <= SETTINGS, f"{named - SETTINGS} is not a setting"
    assert set(_MAYFLY["environment"]) <= SETTINGS


def test_shared_memory_has_space_for_rays_object_store() -> None:
    memory, shared = size(_MAYFLY["mem_limit"]), size(_MAYFLY["shm_size"])

    rings = 400 << 20  # of vLLM, at most
    assert STORE_BYTES["cpu"] + rings + (256 << 20) <= shared, "else adapters find no place"
    assert shared < memory / 2, "it is a part of it"


def test_the_stop_grace_period_covers_the_orderly_end() -> None:
    assert (
        seconds(_MAYFLY["stop_grace_period"])
        > server._GRACE_SECONDS + server._ORDERLY_SECONDS + supervisor._END_SECONDS
    )


def test_prometheus_differs_from_its_plain_configuration_only_by_address_and_key() -> None:
    plain = in_yaml(_DEPLOY / "prometheus" / "prometheus.yml")
    ours = in_yaml(mounted(_PROMETHEUS)["/etc/prometheus/prometheus.yml"])
    (scrape,) = ours["scrape_configs"]
    (port,) = texts_of(_IMAGE, "EXPOSE")
    secret = scrape.pop("authorization")["credentials_file"].removeprefix("/run/secrets/")

    assert scrape.pop("static_configs") == [{"targets": [f"mayfly:{port}"]}]
    plain["scrape_configs"][0].pop("static_configs")
    assert ours == plain
    assert _PROMETHEUS["secrets"] == [secret]
    assert _COMPOSE["secrets"][secret]["environment"] in _MAYFLY["environment"], (
        "the key that the server has"
    )
    for file in ours["rule_files"]:
        assert mounted(_PROMETHEUS)[f"/etc/prometheus/{file}"] == _DEPLOY / "prometheus" / file


def test_grafanas_default_data_source_is_the_prometheus_of_compose() -> None:
    (source,) = in_yaml(mounted(_GRAFANA)["/etc/grafana/provisioning/datasources/mayfly.yml"])[
        "datasources"
    ]
    dashboard = json.loads((_DEPLOY / "grafana" / "mayfly.json").read_text())
    chosen = dashboard["templating"]["list"][0]

    assert source["isDefault"] is True
    assert source["type"] == chosen["query"]
    assert source["url"] == "http://prometheus:" + _PROMETHEUS["ports"][0].rsplit(":")[-1]


def test_grafana_shows_the_dashboard_to_anonymous_users_and_nobody_can_log_in() -> None:
    (provider,) = in_yaml(mounted(_GRAFANA)["/etc/grafana/provisioning/dashboards/mayfly.yml"])[
        "providers"
    ]
    folder = provider["options"]["path"]
    uid = json.loads(mounted(_GRAFANA)[f"{folder}/mayfly.json"].read_text())["uid"]
    variables = _GRAFANA["environment"]

    assert f"http://127.0.0.1:3000/d/{uid}," in (_DEPLOY / "compose.yaml").read_text()
    assert (variables["GF_AUTH_ANONYMOUS_ENABLED"], variables["GF_AUTH_ANONYMOUS_ORG_ROLE"]) == (
        "true",
        "Viewer",
    )
    assert variables["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true", (
        "else admin with the password admin"
    )
    assert all(isinstance(value, str) for value in variables.values()), (
        "Compose refuses a bare true in an environment"
    )


def test_every_provisioning_file_is_mounted() -> None:
    files = {file for file in (_DEPLOY / "grafana" / "provisioning").rglob("*") if file.is_file()}

    assert files
    assert files <= set(mounted(_GRAFANA).values())
