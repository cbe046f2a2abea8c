"""The completion script, asked by a real bash."""

import shutil
import subprocess

import pytest

from adadpo_lightning.cli import main

ASK = """
source "$1"
ask() {
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  _shtab_adadpo_lightning adadpo-lightning "${@: -1}" "${@: -2:1}"
  echo "${COMPREPLY[@]}"
}
ask adadpo-lightning in
ask adadpo-lightning fit --data.max_
ask adadpo-lightning generate --engine ""
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_choices(tmp_path, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    asked = subprocess.run(["bash", "--norc", "-c", ASK, "-", script], capture_output=True, text=True, check=True)
    assert asked.stdout.splitlines() == [
        "inspect-data",
        "--data.max_length --data.max_prompt_length --data.max_tokens",
        "transformers vllm",
    ]


def test_a_shell_without_a_script(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "tcsh" in capsys.readouterr().err
