"""The file of applications: what was changed by hand in it is kept, and what no flag would take is refused."""

import copy
import math
import re

import pytest
import yaml

from assay.bundle.registry import Registry
from assay.cli.console import main
from assay.errors import ServeError
from assay.serve.application_file import read_applications
from assay.serve.config import ApplicationConfig, ServeConfig, SharedConfig
from assay.serve.deployment import configuration
from assay.serve.edits import changes


def served(
    registry: Registry, present: list | tuple = (), told: set | tuple = (), **options
) -> dict:
    """Describe what is deployed, by application."""
    config = ServeConfig(registry=registry.address, app=ApplicationConfig(**options))
    return {app["name"]: app for app in configuration(config, present, told)["applications"]}


def test_flags_go_before_a_file_and_what_was_changed_by_hand_is_kept_where_none_speaks(registry):
    before = served(registry, queue=9, cpus=2.0)
    (parts,) = before["parts"]["deployments"]
    assert parts["user_config"]["queue"] == 9
    present = list(before.values())
    # another flag, or none: what the file's own flags gave is no change by hand
    assert deployment_of(registry, present, (), queue=7) == 7
    (plain,) = served(registry, present)["parts"]["deployments"]
    assert (plain["user_config"]["queue"], plain["ray_actor_options"]["num_cpus"]) == (64, 1.0)
    # by hand
    parts["user_config"]["queue"] = 3
    parts["health_check_period_s"] = 5
    parts["autoscaling_config"]["upscale_delay_s"] = 1
    del parts["graceful_shutdown_timeout_s"]
    before["parts"]["args"]["threads"] = 4
    for options in ({"queue": 9, "cpus": 2.0}, {"queue": 9, "cpus": 2.0, "batch": 8}):
        kept = served(registry, present, **options)["parts"]
        (deployment,) = kept["deployments"]
        assert deployment["user_config"]["queue"] == 3
        assert deployment["health_check_period_s"] == 5
        assert deployment["autoscaling_config"]["upscale_delay_s"] == 1
        assert deployment["user_config"]["batch"] == options.get("batch", 4)
        assert "graceful_shutdown_timeout_s" not in deployment
        assert kept["args"]["threads"] == 4
    # a flag that is given speaks, whatever it says
    assert deployment_of(registry, present, {"app.queue"}, queue=9, cpus=2.0) == 9
    assert deployment_of(registry, present, (), queue=7, cpus=2.0) == 7


def deployment_of(registry, present, told, **options) -> int:
    (deployment,) = served(registry, present, told, **options)["parts"]["deployments"]
    return deployment["user_config"]["queue"]


def test_another_registry_and_new_limits_reach_every_task_and_are_told(registry):
    before = served(registry)
    old = [
        app | {"args": {"config": {}}} if app["name"] == "front" else app for app in before.values()
    ]
    for app in before.values():
        if "task" in app["args"]:  # by an Assay that put the front before them
            app["args"] |= {"registry": "/gone", "decode_s": 3.0}
            del app["args"]["config"]
            app["route_prefix"] = None
            app["deployments"][0] |= {"max_queued_requests": 64, "max_ongoing_requests": 6}
    for present in (list(before.values()), old):
        after = served(registry, present, queue=7)
        assert after["parts"] == served(registry, queue=7)["parts"]
    told = list(changes(before.values(), served(registry, queue=7).values()))
    assert "parts: user_config.queue was 64, is 7" in told
    assert "front: app.queue was 64, is 7" in told
    assert list(changes(before.values(), [before["front"]])) == [
        "layers is not served any more",
        "parts is not served any more",
    ]
    assert list(changes(before.values(), before.values())) == []


def test_a_file_that_is_none_is_refused_in_one_sentence(tmp_path, registry, capsys):
    assert read_applications(tmp_path / "none.yaml") == []
    path = tmp_path / "serve.yaml"
    texts = ["", "a", "[]", "applications: 1", "applications: [1]", "applications: [{name: a}]"]
    texts += ["{", "\t", "applications: [{name: 1, deployments: [{name: a}]}]", "- " * 3000]
    texts += [
        "applications: [{name: a, deployments: [{name: a}, {name: b}]}]",
        "!!python/object:os.a",
    ]
    for text in texts:
        path.write_text(text)
        with pytest.raises(ServeError, match="correct it") as refused:
            read_applications(path)
        assert "\n" not in str(refused.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--registry", registry.address, "--file", str(path), "--open"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def put(file: dict, place: str, value: object) -> None:
    """Put a value into the application `parts` of a file, as an editor would."""
    (app,) = (app for app in file["applications"] if app["name"] == "parts")
    *sections, name = place.split(".")
    section = app["args"] if sections == ["args"] else app["deployments"][0]
    for key in sections if section is not app["args"] else ():
        section = section[key]
    section[name] = value


WRONG = [
    *[("user_config.queue", value) for value in (-5, 0, 1.5, "many", "9", None, True, math.nan)],
    *[("autoscaling_config.max_replicas", value) for value in (0, "all", math.inf, 10**30)],
    *[("user_config.batch", [4]), ("user_config.variant", "fp64"), ("user_config.quue", 9)],
    *[("ray_actor_options.num_cpus", -1), ("args.provider", "abacus")],
    *[(name, ["a"]) for name in ("user_config", "autoscaling_config", "ray_actor_options")],
]


@pytest.mark.parametrize(
    ("name", "value"), [("most_open", 0), ("tasks", ["parts"]), ("tasks", {"a": "b"})]
)
def test_an_edit_of_shared_replicas_is_refused_likewise(registry, tmp_path, name, value):
    path = tmp_path / "serve.yaml"
    shared = SharedConfig(tasks=("*",))
    file = configuration(ServeConfig(registry=registry.address, shared=shared))
    path.write_text(yaml.safe_dump(file))
    assert read_applications(path) == file["applications"]
    file["applications"][1]["deployments"][0]["user_config"][name] = value
    path.write_text(yaml.safe_dump(file))
    with pytest.raises(ServeError, match=r"shared.tasks.*correct it") as refused:
        read_applications(path)
    assert name.replace("_", "-") in str(refused.value).replace("_", "-")


@pytest.mark.parametrize(("place", "value"), WRONG)
def test_an_edit_that_no_flag_would_take_is_refused_by_name(registry, tmp_path, place, value):
    path = tmp_path / "serve.yaml"
    file = configuration(ServeConfig(registry=registry.address))
    path.write_text(yaml.safe_dump(file))
    assert read_applications(path) == file["applications"]
    put(file, place, value)
    path.write_text(yaml.safe_dump(file))
    with pytest.raises(ServeError, match=r"(?s)parts.*correct it") as refused:
        read_applications(path)
    assert re.search(
        place.rpartition(".")[2].removeprefix("num_").replace("_", "."), str(refused.value)
    )


def test_what_stands_twice_in_a_file_is_refused(registry, tmp_path):
    path = tmp_path / "serve.yaml"
    file = configuration(ServeConfig(registry=registry.address))
    text = yaml.safe_dump(file)
    path.write_text(re.sub(r"( +)queue: 64", r"\1queue: 64\n\1queue: 7", text))
    with pytest.raises(ServeError, match="'queue' stands twice"):
        read_applications(path)
    file["applications"].append(copy.deepcopy(file["applications"][1]))
    path.write_text(yaml.dump(file))
    with pytest.raises(ServeError, match="'layers' stands 2 times"):
        read_applications(path)
