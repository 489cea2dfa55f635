"""The settings that a card shows. Oracle: what was typed."""

import yaml

from nanolit.config.compose import compose
from nanolit.report.folders import Run
from nanolit.report.sections import Section, Table
from nanolit.report.settings import chosen_settings, different_rows


def test_only_what_differs_from_the_recipe_is_shown_with_the_recipes_own_value(tmp_path):
    words = [
        "phase=sft",
        "recipe=modern",
        "model=d4",
        "stage.sft.lr_scale=0.5",
        "precision=fp32",
        "eval_every=7",
    ]
    rows = different_rows(compose([*words, f"root={tmp_path}", "start_from=other"]))
    assert rows == [
        ["precision", "derived", "fp32"],
        ["stage.sft.lr_scale", "0.8", "0.5"],
        ["start_from", "-", "other"],
    ]


def test_stages_that_the_run_lacks_are_not_listed(tmp_path):
    keys = {row[0] for row in different_rows(compose(["experiment=demo", "phase=base", f"root={tmp_path}"]))}
    assert "stage.base.total_batch" in keys
    assert not any(key.startswith(("stage.sft.", "stage.rl.", "recipe.rl.")) for key in keys)


def test_many_are_folded_below_the_command_that_was_typed(tmp_path):
    job = compose(["experiment=demo", f"root={tmp_path}"])
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(dict(job)))
    (section,) = chosen_settings(Run(folder))
    assert isinstance(section, Section)
    command, folded = section.blocks
    assert command.text == "python -m nanolit.train experiment=demo"
    assert folded.folded
    assert isinstance(folded.blocks[0], Table)


def test_the_command_has_no_folder_of_the_machine(tmp_path):
    job = compose(["phase=base", "model=d4", f"data={tmp_path}/mine", f"root={tmp_path}", "max_steps=9"])
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    job["overrides"] = ["phase=base", "data=/home/me/mine", f"logger.file={tmp_path}/log", f"root={tmp_path}"]
    (folder / "job.yaml").write_text(yaml.safe_dump(dict(job)))
    section = chosen_settings(Run(folder))[0]
    assert isinstance(section, Section)
    assert section.blocks[0].text == "python -m nanolit.train phase=base data=.../mine logger.file=log"


def test_a_run_without_a_whole_job_has_no_such_section(tmp_path):
    assert chosen_settings(Run(tmp_path)) == []
