"""The manifests for Kubernetes, as they would be applied: whole, closed to the outside, in step
with the settings.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from serving import __version__
from serving.adaptation.admission import Capacity
from serving.config import Config
from serving.http import hardening
from serving.settings.settings import Settings
from serving.settings.sources import settings_from, variable
from tests.deploy.kustomize import Resource, built

_DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
_FOLDER = _DEPLOY / "kubernetes"
_IN_FILES, _IN_DATABASE = ["cpu", "gpu", "gpus"], "gpus-postgres"
_NAMES = [*_IN_FILES, _IN_DATABASE]
_SERVE, _DASHBOARD, _AGENT = 8000, 8265, 52365
_SECRET = re.compile(r"KEYS?\b|KEYS?_|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_UNITS = {"Mi": 1 << 20, "Gi": 1 << 30}

every_overlay = pytest.mark.parametrize("name", _NAMES)


@cache
def manifests(name: str) -> list[Resource]:
    return built(_FOLDER / "overlays" / name)


def one(name: str, kind: str) -> Resource:
    (found,) = [each for each in manifests(name) if each["kind"] == kind]
    return found


def cluster(name: str) -> Resource:
    found: Resource = one(name, "RayService")["spec"]["rayClusterConfig"]
    return found


def pods(name: str) -> Iterator[tuple[str, Resource]]:
    """Node type, as KubeRay labels it, and pod template of each group."""
    yield "head", cluster(name)["headGroupSpec"]["template"]
    for group in cluster(name).get("workerGroupSpecs", ()):
        yield "worker", group["template"]


def containers(name: str) -> Iterator[tuple[Resource, Resource]]:
    """Spec of the pod, and its container."""
    for _, pod in pods(name):
        (container,) = pod["spec"]["containers"]
        yield pod["spec"], container


def environment(name: str, container: Resource) -> dict[str, Any]:
    """The environment of a container: values, or their sources."""
    config = one(name, "ConfigMap")
    assert container["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]
    own = {
        each["name"]: each.get("value", each.get("valueFrom")) for each in container.get("env", ())
    }
    return {**config["data"], **own}


def amount(quantity: str) -> int:
    return int(quantity[:-2]) * _UNITS[quantity[-2:]]


def gpus(container: Resource) -> int:
    return int(container["resources"]["limits"].get("nvidia.com/gpu", 0))


@pytest.fixture
def config(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Config:
    """Mayfly's configuration in the head's pod of the test's overlay."""
    _, head = next(containers(request.param))
    for key, value in environment(request.param, head).items():
        if key.startswith("MAYFLY_") and isinstance(value, str):
            monkeypatch.setenv(key, value)
    monkeypatch.setenv("MAYFLY_HOME", str(tmp_path))
    serve = yaml.safe_load(one(request.param, "RayService")["spec"]["serveConfigV2"])
    return settings_from(serve["applications"][0]["args"]).config()


each_config = pytest.mark.parametrize(
    ("config", "name"), [(each, each) for each in _NAMES], indirect=["config"]
)


def test_every_file_has_a_comment_and_is_listed_once() -> None:
    files = {
        file.resolve() for folder in (_FOLDER, _DEPLOY / "serve") for file in folder.rglob("*.yaml")
    }
    named = []
    for file in files:
        assert file.read_text().startswith("# "), file
        assert all(
            isinstance(each, dict | list) for each in yaml.safe_load_all(file.read_text())
        ), file
        if file.name == "kustomization.yaml":
            said = yaml.safe_load(file.read_text())
            names = said.get("resources", []) + [each["path"] for each in said.get("patches", ())]
            names += [
                each
                for generator in said.get("configMapGenerator", ())
                for each in generator["files"]
            ]
            named += [(file.parent / each).resolve() for each in names]

    assert all(each.exists() for each in named)
    manifests = [each for each in named if each.is_file()]
    assert sorted(manifests) == sorted(file for file in files if file.name != "kustomization.yaml")
    folders = {_FOLDER / "base", _FOLDER / "overlays" / "gpus", _DEPLOY / "serve"}
    assert {each for each in named if each.is_dir()} == folders


@every_overlay
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_kustomize_builds_the_same_manifests_as_these_tests(name: str) -> None:
    folder = _FOLDER / "overlays" / name
    ran = subprocess.run(
        ["kubectl", "kustomize", folder], capture_output=True, text=True, check=True
    )

    def key(resource: Resource) -> tuple[str, str]:
        return resource["kind"], resource["metadata"]["name"]

    assert sorted(yaml.safe_load_all(ran.stdout), key=key) == sorted(manifests(name), key=key)


@every_overlay
def test_the_serve_config_is_the_file(name: str) -> None:
    assert (
        one(name, "RayService")["spec"]["serveConfigV2"]
        == (_DEPLOY / "serve" / f"{name}.yaml").read_text()
    )


@every_overlay
def test_everything_is_in_the_restricted_namespace(name: str) -> None:
    namespace = one(name, "Namespace")

    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for each in manifests(name):
        assert (
            each["kind"] == "Namespace"
            or each["metadata"]["namespace"] == namespace["metadata"]["name"]
        )


@every_overlay
def test_no_pod_runs_as_root_or_can_become_root(name: str) -> None:
    contexts = [container["securityContext"] for _, container in containers(name)]
    if cluster(name).get("enableInTreeAutoscaling"):
        contexts.append(cluster(name)["autoscalerOptions"]["securityContext"])

    for spec, _ in containers(name):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all(
            set(volume) & {"persistentVolumeClaim", "emptyDir", "projected", "secret"}
            for volume in spec["volumes"]
        )
    for context in contexts:
        assert context["runAsNonRoot"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not context.get("privileged")


@every_overlay
def test_no_container_of_mayfly_has_a_token_for_kubernetes(name: str) -> None:
    account = one(name, "ServiceAccount")

    assert account["automountServiceAccountToken"] is False
    for spec, container in containers(name):
        assert spec["serviceAccountName"] == account["metadata"]["name"]
        assert spec["automountServiceAccountToken"] is False
        tokens = {
            volume["name"]
            for volume in spec["volumes"]
            if any(
                "serviceAccountToken" in source
                for source in volume.get("projected", {}).get("sources", ())
            )
        }
        assert not tokens & {mount["name"] for mount in container["volumeMounts"]}
    if cluster(name).get("enableInTreeAutoscaling"):
        (mount,) = cluster(name)["autoscalerOptions"]["volumeMounts"]
        assert mount["name"] in {
            volume["name"] for volume in next(pods(name))[1]["spec"]["volumes"]
        }


@every_overlay
def test_services_expose_the_serve_port_only(name: str) -> None:
    spec, head = one(name, "RayService")["spec"], cluster(name)["headGroupSpec"]

    assert not {"Service", "Ingress", "Gateway"} & {each["kind"] for each in manifests(name)}
    assert [port["port"] for port in spec["serveService"]["spec"]["ports"]] == [_SERVE]
    # Of the Service that KubeRay makes of the head's ports.
    assert head["serviceType"] == "ClusterIP"
    assert head["enableIngress"] is False
    assert "headService" not in head
    assert "hostPort" not in str(manifests(name))


@every_overlay
def test_the_network_policy_admits_everyone_to_the_serve_port_only(name: str) -> None:
    policy = one(name, "NetworkPolicy")["spec"]

    assert policy["policyTypes"] == ["Ingress"]
    labels = policy["podSelector"]["matchLabels"]
    assert all(labels.items() <= pod["metadata"]["labels"].items() for _, pod in pods(name))
    for rule in policy["ingress"]:
        ports = {port["port"] for port in rule.get("ports", ())}
        peers = rule.get("from", ())
        if not peers:
            assert ports == {_SERVE}
        for peer in peers:
            assert peer["podSelector"]["matchLabels"]
            if "namespaceSelector" in peer:
                assert peer["namespaceSelector"]["matchLabels"]
                assert ports == {_DASHBOARD}  # KubeRay's operator hands in the Serve config
            else:
                assert peer["podSelector"]["matchLabels"] == labels


@every_overlay
def test_rays_own_ports_require_a_token(name: str) -> None:
    assert cluster(name)["authOptions"] == {"mode": "token"}
    assert cluster(name)["rayVersion"] == ray.__version__


@every_overlay
def test_manifests_name_secrets_but_do_not_contain_them(name: str) -> None:
    assert "Secret" not in {each["kind"] for each in manifests(name)}
    for _, container in containers(name):
        for key, value in environment(name, container).items():
            assert key == variable("api_key_file") or not _SECRET.search(key), (key, value)


@every_overlay
def test_no_pod_starts_without_the_secret_with_the_key_file(name: str) -> None:
    for spec, container in containers(name):
        file = Path(environment(name, container)[variable("api_key_file")])
        (mount,) = [
            mount for mount in container["volumeMounts"] if mount["mountPath"] == str(file.parent)
        ]
        (secret,) = [
            volume["secret"] for volume in spec["volumes"] if volume["name"] == mount["name"]
        ]
        assert mount["readOnly"]
        assert "subPath" not in mount, "it would not follow a change"
        assert not secret.get("optional"), "without the Secret it would be open"
        assert secret["items"] == [{"key": file.name, "path": file.name}], (
            "a Secret without it would do"
        )
        assert secret["defaultMode"] == 0o440


def test_every_pod_has_the_url_of_the_database_and_a_folder_for_indexes() -> None:
    for spec, container in containers(_IN_DATABASE):
        variables = environment(_IN_DATABASE, container)
        source = variables[variable("corpora")]["secretKeyRef"]
        assert source == {"name": "mayfly-corpora", "key": "url"}, "or it would be optional"
        (mount,) = [
            mount
            for mount in container["volumeMounts"]
            if mount["mountPath"] == variables[variable("home")]
        ]
        (volume,) = [each for each in spec["volumes"] if each["name"] == mount["name"]]
        assert set(volume) == {"name", "emptyDir"}
        assert not mount.get("readOnly")
    for name in _IN_FILES:
        for _, container in containers(name):
            assert variable("corpora") not in environment(name, container)


@every_overlay
def test_no_services_variables_are_taken_for_settings(name: str) -> None:
    for spec, _ in containers(name):
        assert spec["enableServiceLinks"] is False  # else the Service `mayfly` comes as MAYFLY_PORT


@every_overlay
def test_every_variable_of_mayfly_is_a_setting(name: str) -> None:
    known = {variable(each.name) for each in fields(Settings)} | {"MAYFLY_CONFIG"}

    for _, container in containers(name):
        assert {key for key in environment(name, container) if key.startswith("MAYFLY_")} <= known


@every_overlay
def test_every_pod_has_the_middleware_that_limits_requests(name: str) -> None:
    for _, container in containers(name):
        assert (
            environment(name, container)["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
            == hardening.IMPORT_PATH
        )


@each_config
def test_the_resulting_settings_have_keys_and_fit_the_pods_cores(config: Config, name: str) -> None:
    _, head = next(containers(name))
    cores = int(head["resources"]["limits"]["cpu"])

    assert config.has_keys
    if name == "cpu":
        assert config.capacity == Capacity.for_machine(cores, gpus=0)
    scaled = yaml.safe_load(one(name, "RayService")["spec"]["serveConfigV2"])["applications"][
        0
    ].get("deployments", ())
    selectors = [
        each["autoscaling_config"]["max_replicas"] for each in scaled if each["name"] == "selector"
    ]
    # Engine and trainer share the pod's, or selectors do.
    assert config.threads * (selectors or [2])[0] == cores


@each_config
def test_there_are_enough_gpus_for_all_replicas(config: Config, name: str) -> None:
    serve = yaml.safe_load(one(name, "RayService")["spec"]["serveConfigV2"])["applications"][0]
    most = {
        each["name"]: each["autoscaling_config"]["max_replicas"]
        for each in serve.get("deployments", ())
    }
    least = {
        each["name"]: each["autoscaling_config"]["min_replicas"]
        for each in serve.get("deployments", ())
    }
    (_, head), *others = containers(name)
    groups = cluster(name).get("workerGroupSpecs", [])

    def asked(replicas: dict[str, int]) -> float:
        return config.engine_gpus * replicas.get("engine", 1) + config.trainer_gpus * replicas.get(
            "trainer", 1
        )

    here = [(group, gpus(container)) for group, (_, container) in zip(groups, others, strict=True)]
    assert asked(most) <= gpus(head) + sum(group["maxReplicas"] * count for group, count in here)
    assert asked(least) <= gpus(head) + sum(group["minReplicas"] * count for group, count in here)
    for spec, container in containers(name):
        assert bool(gpus(container)) == ("tolerations" in spec)


@every_overlay
def test_requested_memory_is_the_limit_and_includes_shared_memory(name: str) -> None:
    groups = [cluster(name)["headGroupSpec"], *cluster(name).get("workerGroupSpecs", ())]
    for group, (spec, container) in zip(groups, containers(name), strict=True):
        assert container["resources"]["requests"] == container["resources"]["limits"]
        (shared,) = [
            mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"
        ]
        (volume,) = [each["emptyDir"] for each in spec["volumes"] if each["name"] == shared]
        assert volume["medium"] == "Memory"
        objects, adapters = int(group["rayStartParams"]["object-store-memory"]), 1 << 30
        memory = amount(container["resources"]["limits"]["memory"])
        assert objects + adapters <= amount(volume["sizeLimit"]) <= memory / 4


@every_overlay
def test_every_container_has_probes(name: str) -> None:
    for node, (_, container) in zip(
        [node for node, _ in pods(name)], containers(name), strict=True
    ):
        alive, ready = container["livenessProbe"], container["readinessProbe"]
        # Which wants no token for it.
        assert alive["httpGet"] == {"path": "/api/healthz", "port": _AGENT}
        if node == "worker":  # of a head KubeRay asks Ray's proxy itself, at the same path
            assert ready["httpGet"] == {"path": "/-/healthz", "port": _SERVE}
        else:
            assert ready["httpGet"] == alive["httpGet"]
        # A busy node is not a dead one.
        assert alive["failureThreshold"] * alive["periodSeconds"] >= 60


@every_overlay
def test_images_have_this_version_and_the_overlays_kind(name: str) -> None:
    for _, container in containers(name):
        assert container["image"] == f"mayfly:{__version__}-{'cpu' if name == 'cpu' else 'gpu'}"


@every_overlay
def test_disruption_budgets_select_existing_pods(name: str) -> None:
    labels = [{"ray.io/node-type": node} | pod["metadata"]["labels"] for node, pod in pods(name)]
    budgets = [each["spec"] for each in manifests(name) if each["kind"] == "PodDisruptionBudget"]

    assert len(budgets) == len(labels)
    for budget in budgets:
        assert (
            sum(budget["selector"]["matchLabels"].items() <= each.items() for each in labels) == 1
        )
        # A share, or `maxUnavailable`, is not for pods of a RayCluster.
        assert budget["minAvailable"] == 1


@pytest.mark.parametrize("name", _IN_FILES)
def test_corpora_in_files_are_opened_on_one_host_only(name: str) -> None:
    (claim,) = [each for each in manifests(name) if each["kind"] == "PersistentVolumeClaim"]
    holders = {
        (node, mount["mountPath"])
        for node, pod in pods(name)
        for volume in pod["spec"]["volumes"]
        for mount in pod["spec"]["containers"][0]["volumeMounts"]
        if mount["name"] == volume["name"] and "persistentVolumeClaim" in volume
        if volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    }

    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert holders == {("head", one(name, "ConfigMap")["data"][variable("home")])}
    assert cluster(name)["headGroupSpec"]["resources"] == {"corpora": "1"}  # what selectors ask for
    assert not any("resources" in group for group in cluster(name).get("workerGroupSpecs", ()))
    (beside,) = next(pods(name))[1]["spec"]["affinity"]["podAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert beside["topologyKey"] == "kubernetes.io/hostname"
    head = {"ray.io/node-type": "head"} | next(pods(name))[1]["metadata"]["labels"]
    # Itself too: else the first one would never start.
    assert beside["labelSelector"]["matchLabels"] == head


def test_no_pod_is_bound_to_a_node_where_corpora_are_in_a_database() -> None:
    found = cluster(_IN_DATABASE)

    assert "PersistentVolumeClaim" not in {each["kind"] for each in manifests(_IN_DATABASE)}
    for _, pod in pods(_IN_DATABASE):
        assert not {"affinity", "nodeSelector", "nodeName"} & set(pod["spec"])
        assert not any("persistentVolumeClaim" in volume for volume in pod["spec"]["volumes"])
    # Resources of Ray's own bind replicas to the pods that have them.
    for group in [found["headGroupSpec"], *found["workerGroupSpecs"]]:
        assert "resources" not in group
    serve = yaml.safe_load(one(_IN_DATABASE, "RayService")["spec"]["serveConfigV2"])
    for each in serve["applications"][0]["deployments"]:
        assert "placement_group_bundles" not in each


@every_overlay
def test_an_update_starts_a_second_cluster_if_there_is_capacity(name: str) -> None:
    spec = one(name, "RayService")["spec"]

    assert spec["upgradeStrategy"] == {"type": "None" if name == "gpu" else "NewCluster"}
    assert spec["rayClusterDeletionDelaySeconds"] >= 120
