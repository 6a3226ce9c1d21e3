"""The Serve configs: Ray's own schema takes them, their args are settings, and what they override
is there.
"""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private.build_app import build_app
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    LoggingConfig,
    ProxyLocation,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from selection.location import home_of
from serving.adaptation.admission import Capacity
from serving.app import application, build
from serving.config import Config
from serving.environment import CORE_SHARE
from serving.settings.settings import Settings
from serving.settings.sources import parse_settings, settings_from

_FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "serve"
_NAMES = ["cpu", "gpu", "gpus", "gpus-postgres"]


def config_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text())
    return found


def the_application(name: str) -> dict[str, Any]:
    (only,) = config_of(name)["applications"]
    found: dict[str, Any] = only
    return found


def overrides(name: str) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in the_application(name).get("deployments", ())}


@pytest.fixture
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    """The configuration that follows from the args of the test's Serve config on this machine."""
    return settings_from({**the_application(request.param)["args"], "home": str(tmp_path)}).config()


def test_every_serve_config_is_tested() -> None:
    assert sorted(file.stem for file in _FOLDER.glob("*.yaml")) == sorted(
        [*_NAMES, "kustomization"]
    )


@pytest.mark.parametrize("name", _NAMES)
def test_rays_schema_accepts_it_and_knows_every_key(name: str) -> None:
    found = config_of(name)

    taken = ServeDeploySchema.model_validate(found)

    assert taken.proxy_location == ProxyLocation.EveryNode
    assert (taken.http_options.host, taken.http_options.port) == ("0.0.0.0", 8000)
    pairs = [  # the schema passes over what it does not know
        (ServeDeploySchema, found),
        (HTTPOptionsSchema, found["http_options"]),
        (LoggingConfig, found["logging_config"]),
        (ServeApplicationSchema, the_application(name)),
        *((DeploymentSchema, each) for each in overrides(name).values()),
        *((AutoscalingConfig, each["autoscaling_config"]) for each in overrides(name).values()),
    ]
    for schema, keys in pairs:
        assert set(keys) <= set(schema.model_fields), schema.__name__


@pytest.mark.parametrize("name", _NAMES)
def test_the_application_is_mayfly_at_the_root(name: str) -> None:
    found = the_application(name)
    module, attribute = found["import_path"].split(":")

    assert getattr(import_module(module), attribute) is application
    assert (found["name"], found["route_prefix"]) == ("mayfly", "/")


@pytest.mark.parametrize("name", _NAMES)
def test_its_args_are_settings_in_dashes(name: str, tmp_path: Path) -> None:
    args = the_application(name)["args"]

    assert not [each for each in args if "_" in each]
    assert settings_from({**args, "home": str(tmp_path)}) == replace(
        Settings(home=tmp_path), **parse_settings(args)
    )


@pytest.mark.parametrize(("config", "name"), [(each, each) for each in _NAMES], indirect=["config"])
def test_overrides_apply_to_existing_deployments(config: Config, name: str) -> None:
    made = {each.name: each for each in build_app(build(config), name="mayfly").deployments}

    assert set(made) == {"engine", "trainer", "selector"}
    for deployment, options in overrides(name).items():
        assert "ray_actor_options" not in options, (
            "they would take the place of what serving.app sets"
        )
        taken = made[deployment].options(
            **{key: value for key, value in options.items() if key != "name"}
        )
        assert taken.ray_actor_options == made[deployment].ray_actor_options
        assert taken.ray_actor_options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == str(
            config.threads
        )


@pytest.mark.parametrize("config", ["cpu"], indirect=True)
def test_engine_and_trainer_share_the_cores_by_one_file(config: Config) -> None:
    sharing = replace(config, threads=2, cores=4)

    def shares(config: Config) -> set[str | None]:
        made = build_app(build(config), name="mayfly").deployments
        return {
            each.ray_actor_options["runtime_env"]["env_vars"].get(CORE_SHARE)
            for each in made
            if each.name in ("engine", "trainer")
        }

    assert shares(sharing) == {f"2:4:{home_of(config.selector.root) / 'cores.lock'}"}
    assert shares(replace(config, threads=2, cores=0)) == {None}


@pytest.mark.parametrize("config", ["cpu"], indirect=True)
def test_the_cpu_config_requests_no_gpu(config: Config) -> None:
    assert (config.engine_gpus, config.trainer_gpus) == (0, 0)


@pytest.mark.parametrize("config", ["gpu"], indirect=True)
def test_a_shared_gpu_is_divided_in_capacity_and_in_memory(config: Config) -> None:
    assert 0 < config.engine_gpus < 1
    assert 0 < config.trainer_gpus < 1
    assert config.engine_gpus + config.trainer_gpus <= 1
    # VLLM's context is not in its part.
    assert config.engine.gpu_memory_utilization < config.engine_gpus
    assert config.engine.gpu_memory_utilization + config.trainer_gpus < 1
    (split,) = re.findall(r"# Memory: (.*?)\. ", (_FOLDER / "gpu.yaml").read_text(), re.DOTALL)
    engine, trainer, contexts = (float(share) for share in re.findall(r"\d\.\d+", split))
    assert (engine, trainer) == (config.engine.gpu_memory_utilization, config.trainer_gpus)
    assert engine + trainer + contexts == pytest.approx(1)


@pytest.mark.parametrize("config", ["gpus"], indirect=True)
def test_with_many_gpus_each_replica_has_a_whole_one(config: Config) -> None:
    assert (config.engine_gpus, config.trainer_gpus) == (1, 1)
    assert config.capacity == Capacity.for_machine(1, gpus=1)


@pytest.mark.parametrize("config", ["gpus"], indirect=True)
def test_replicas_scale_by_the_queue_of_their_deployment(config: Config) -> None:
    scaled = {
        name: AutoscalingConfig(**each["autoscaling_config"])
        for name, each in overrides("gpus").items()
    }

    assert set(scaled) == {"engine", "trainer", "selector"}
    assert all(1 <= each.min_replicas < each.max_replicas for each in scaled.values())
    assert (
        scaled["engine"].target_ongoing_requests
        == config.engine.max_num_seqs
        < config.capacity.requests
    )
    assert scaled["trainer"].target_ongoing_requests == config.trainer.slots
    seconds = config.limits.seconds
    assert seconds is not None
    assert all(
        overrides("gpus")[name]["graceful_shutdown_timeout_s"] > seconds
        for name in ("engine", "trainer")
    )


def test_selectors_of_corpora_in_a_database_run_on_several_nodes() -> None:
    selector = overrides("gpus-postgres")["selector"]

    assert "placement_group_bundles" not in selector
    assert selector["max_replicas_per_node"] == 1
    assert selector["autoscaling_config"]["min_replicas"] > 1
    # In all else both configurations are the same.
    both = [config_of(name) for name in ("gpus", "gpus-postgres")]
    for config in both:
        (application,) = config["applications"]
        application["deployments"] = [
            each for each in application["deployments"] if each["name"] != "selector"
        ]
    assert both[0] == both[1]


def test_selectors_run_only_on_the_node_with_the_corpora() -> None:
    selector = overrides("gpus")["selector"]
    (bundle,) = selector["placement_group_bundles"]

    assert set(bundle) == {"corpora"}
    assert bundle["corpora"] * selector["autoscaling_config"]["max_replicas"] == 1
