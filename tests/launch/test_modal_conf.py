"""The Modal launcher's settings: typed by Hydra, checked by us for what Modal's client lets pass."""

from dataclasses import asdict

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra_plugins.nanolit_modal.config import ModalLauncherConf
from hydra_plugins.nanolit_modal.launcher import ModalLauncher, check_jobs, validate
from omegaconf import OmegaConf

from launch.gpus import same_gpu
from launch.submit import dollars_per_hour
from nanolit.config.compose import compose, compose_config, options


def settings(**changes: object) -> dict:
    defaults = asdict(ModalLauncherConf())
    del defaults["_target_"]
    return {**defaults, **changes}


def test_both_launchers_are_found():
    names = {plugin.__name__ for plugin in Plugins.instance().discover(Launcher)}
    assert {"ModalLauncher", "LocalLauncher"} <= names


@pytest.mark.parametrize("name", [name for name in options("cluster") if name.startswith("modal")])
def test_every_modal_cluster_has_settings_that_pass(name):
    config = compose_config([f"cluster={name}"])
    launcher = dict(config.hydra.launcher)
    assert launcher.pop("_target_").endswith("ModalLauncher")
    validate(**launcher)
    check_jobs([compose([f"cluster={name}"])], launcher)


def test_a_gpu_is_the_same_however_it_is_written():
    pairs = [("A10:4", "A10G"), ("H100!:8", "H100"), ("B200+", "B200"), ("A100:2", "A100-40GB")]
    assert [same_gpu(one) for one, _ in pairs] == [same_gpu(other) for _, other in pairs]
    assert same_gpu("A100-80GB") != same_gpu("A100")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu": "H1000"}, "give one of T4"),
        ({"gpu": "A10:8"}, "1 to 4"),
        ({"gpu": "H100:9"}, "1 to 8"),
        ({"gpu": "H100:0"}, "1 to 8"),
        ({"gpu": ["H100:8", "h200:8"]}, "give one of T4"),
        ({"gpu": 8}, "give a name like H100:8, or a list"),
        ({"gpu": "H100", "nodes": 2}, "H100:8"),
        ({"timeout": 100_000}, "Modal allows 1 to 86,400"),
        ({"timeout": 0}, "Modal allows 1 to 86,400"),
        ({"retries": -1}, "Modal allows 0 to 10"),
        ({"volumes": {"vol": {}}}, "an absolute path"),
    ],
)
def test_what_modal_would_refuse_or_bill_is_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        validate(**settings(**changes))


def test_the_defaults_pass():
    validate(**settings())


def test_several_gpus_will_do_if_they_have_the_memory_that_is_planned_for():
    job = compose(["cluster=modal_h100"])
    check_jobs([job], settings(gpu=["H100", "H200", "A100-80GB"]))
    with pytest.raises(ValueError, match="A100-40GB instead of H100, with less memory"):
        check_jobs([job], settings(gpu=["H100", "A100-40GB"]))
    assert dollars_per_hour(job, settings(gpu=["H100", "H200"])) > dollars_per_hour(job, settings(gpu="H100"))


def test_a_sweeper_that_needs_results_needs_to_wait():
    """Optuna's target by name: its plugin isn't needed to refuse."""
    launcher = ModalLauncher(**settings(wait=False))
    target = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
    launcher.config = OmegaConf.create({"hydra": {"sweeper": {"_target_": target}}})
    with pytest.raises(ValueError, match=r"OptunaSweeper chooses jobs by the results .* give wait=true"):
        launcher.refuse_sweeper_without_results()
