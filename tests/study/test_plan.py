"""What a study says about itself before it runs."""

from adadpo_lightning.cli import main
from adadpo_lightning.study.directory import result_path
from adadpo_lightning.study.grid import Arm, EmbeddedTaskConfig, StudyConfig, jobs_of
from adadpo_lightning.study.plan import CELL, PREPARE, plan_lines
from adadpo_lightning.study.result_file import write_result


def study(root, **options):
    arms = {"dpo": Arm("dpo"), "simper": Arm("simper", strength=None)}
    grid = {"learning_rates": [1e-4, 5e-4], "betas": [0.1, 0.3, 1.0], "seeds": [0, 1], "arms": arms}
    return StudyConfig(**{"output_dir": str(root), **grid, **options})


def finish(study, jobs, seconds):
    for job in jobs:
        result = {"status": "done", "error": None, "seconds": seconds, "run": "run", "metrics": {}}
        write_result(result_path(study, job), result)


def test_a_fresh_study_takes_the_time_of_the_committed_ones(tmp_path):
    lines = plan_lines(study(tmp_path), 2)
    assert lines[:3] == [
        f"18 jobs, 0 of them done, 18 left, in {tmp_path}",
        "  dpo: 2 x 3 x 2 = 12 cells, 0 done",
        "  simper: 2 x 1 x 2 = 4 cells, 0 done",
    ]
    hours = (2 * PREPARE + 16 * CELL) / 2 / 3600
    assert lines[3] == f"about {hours:.1f} hours with 2 side by side, 11 s a cell as in the committed studies"


def test_a_begun_study_takes_its_own(tmp_path):
    begun = study(tmp_path, embedded=EmbeddedTaskConfig(prompts=64))
    assert "is known once a cell is done" in plan_lines(begun, 2)[-1]  # another size than the committed ones
    prepare, cells = jobs_of(begun)[:2], jobs_of(begun)[2:]
    finish(begun, prepare, 100.0)
    finish(begun, cells[:4], 7200.0)
    lines = plan_lines(begun, 3)
    assert lines[0].startswith("18 jobs, 6 of them done, 12 left")
    assert lines[1] == "  dpo: 2 x 3 x 2 = 12 cells, 4 done"
    assert lines[-1] == "about 8.0 hours with 3 side by side, 7200 s a cell as its own cells so far"
    finish(begun, cells, 1.0)
    assert plan_lines(begun, 3)[-1] == "nothing is left to run"


def test_your_own_data_has_no_time_before_the_first_cell(tmp_path):
    own = study(tmp_path, task="preference", fit_configs=["base.yaml"])
    assert "is known once a cell is done" in plan_lines(own, 1)[-1]


def test_a_plan_writes_nothing(tmp_path, capsys):
    arguments = ["--arms={dpo: {loss: dpo}}", "--betas=[0.1]", "--learning_rates=[1e-4]", "--seeds=[0]"]
    assert main(["study", f"--output_dir={tmp_path / 'study'}", "--plan=true", "--jobs=1", *arguments]) == 0
    assert "2 jobs, 0 of them done, 2 left" in capsys.readouterr().out
    assert not (tmp_path / "study").exists()
