"""Bad studies: the grid, its files, its results."""

import json

from tests.support.bad_input.case import Case, file, folder_of

GRID = {"learning_rates": [1e-3], "betas": [0.1], "seeds": [0], "arms": {"dpo": {"loss": "dpo"}}}
OWN = {"fit_configs": ["base", "loss/dpo"], "fit_options": {"data.val": "v.jsonl", "model.policy.path": "x"}}
CELL = "study/cells/dpo_lr0.001_beta0.1_seed0/result.json"
DONE = {"format": 2, "status": "done", "error": None, "seconds": 1.0, "run": "run", "metrics": {"win_rate": 0.5}}


def study(name, change, names, says, *, command="study", **options):
    """A study of one cell, with its config changed."""
    config = {key: value for key, value in {**GRID, **change}.items() if value != "-"}
    given = {"config": file("s.yaml", json.dumps(config)), "output_dir": "study", **options}
    return Case(f"study {name}", given, names, says, command=command, bare=True)


def reported(name, names, says, **files):
    """The report of a study whose directory has these files."""
    given = {"config": file("s.yaml", json.dumps(GRID)), "output_dir": lambda f, m: folder_of(**files)(f, m) / "study"}
    return Case(f"report of {name}", {**given, "report_only": "true"}, names, says, command="study", bare=True)


def result(name, content, says):
    text = content if isinstance(content, str) else json.dumps(content)
    return reported(f"a result {name}", "result.json: not the result of a job", says, **{CELL: text})


def own(name, change, names, says):
    """A study over the user's own configs."""
    return study(f"of own data {name}", {"task": "preference", **change}, names, says)


CASES = [
    study("without rates", {"learning_rates": []}, "learning_rates", "expected at least one, got none"),
    study("with a rate twice", {"learning_rates": [1e-3, 1e-3]}, "learning_rates", "expected each value once"),
    study(
        "with a negative rate", {"learning_rates": [-1e-3]}, "learning_rates", "expected numbers above 0, got -0.001"
    ),
    study("with a rate of text", {"learning_rates": ["fast"]}, "learning_rates", ""),
    study("with a rate of null", {"learning_rates": [None]}, "learning_rates", ""),
    study("with rates null", {"learning_rates": None}, "learning_rates", ""),
    study("with one rate", {"learning_rates": 1e-3}, "learning_rates", ""),
    study("with a rate of NaN", {"learning_rates": [float("nan")]}, "learning_rates", ""),
    study("with a beta of zero", {"betas": [0]}, "arms.dpo: loss.beta", "expected a finite number above 0"),
    study("without betas", {"betas": []}, "betas", "expected at least one, got none"),
    study("without seeds", {"seeds": []}, "seeds", "expected at least one, got none"),
    study("with a seed of text", {"seeds": ["x"]}, "seeds", ""),
    study("with a negative seed", {"seeds": [-1]}, "seeds", "expected numbers from 0, got -1"),
    study("without arms", {"arms": {}}, "arms", "expected at least one, got none"),
    study("with arms null", {"arms": None}, "arms", ""),
    study("with a list of arms", {"arms": ["dpo"]}, "arms", ""),
    study("with an arm of text", {"arms": {"dpo": "dpo"}}, "arms", ""),
    study("with an unknown loss", {"arms": {"a": {"loss": "dop"}}}, "arms.a.loss", "unknown loss 'dop'"),
    study("with a loss of null", {"arms": {"a": {"loss": None}}}, "arms", ""),
    study("with an unknown option", {"arms": {"a": {"loss": "dpo", "options": {"betta": 1}}}}, "arms.a: ", "betta"),
    study("with options of a list", {"arms": {"a": {"loss": "dpo", "options": [1]}}}, "arms", ""),
    study(
        "with an option out of range",
        {"arms": {"a": {"loss": "dpo", "options": {"label_smoothing": 2}}}},
        "arms.a: ",
        "label_smoothing",
    ),
    study("with an unknown strength", {"arms": {"a": {"loss": "dpo", "strength": "power"}}}, "arms.a: ", "power"),
    study(
        "with a twin of nothing",
        {"arms": {"a": {"loss": "dpo", "twin_of": "b"}}},
        "arms.a.twin_of",
        "no other arm is called 'b'",
    ),
    study(
        "with a coefficient of itself",
        {"arms": {"a": {"loss": "dpo", "coefficient_of": "a"}}},
        "arms.a.coefficient_of",
        "no other arm is called 'a'",
    ),
    study(
        "with an arm with a slash",
        {"arms": {"../a": {"loss": "dpo"}}},
        "arms.../a",
        "expected a name without spaces and slashes",
    ),
    study("with an arm with an unknown key", {"arms": {"a": {"loss": "dpo", "los": 1}}}, "arms", "los"),
    study("of an unknown task", {"task": "nonesuch"}, "task", ""),
    study("with an unknown key", {"learning_rate": [1]}, "learning_rate", ""),
    study(
        "with an evaluation of its own",
        {"evaluation": {"prompts": "a", "baseline": "b", "judge": "length"}},
        "evaluation",
        "has its own",
    ),
    study(
        "with an unknown option of fit", {"fit_options": {"data.max_lenght": 3}}, "data.max_lenght", "data.max_length"
    ),
    study(
        "with an option of fit out of range", {"fit_options": {"data.max_length": 0}}, "data.max_length", "at least 2"
    ),
    study("with options of fit of a list", {"fit_options": [1]}, "fit_options", ""),
    study("with no jobs", {}, "jobs", "", jobs=0),
    study("with an unknown job", {}, "job", "the study has no job 'nonesuch'", job="nonesuch"),
    study("in a file", {}, "output_dir", "", output_dir=file("study")),
    study("below a file", {}, "output_dir", "cannot be written", output_dir=lambda f, m: file("x")(f, m) / "study"),
    study("with a corpus of nothing", {"embedded": {"corpus_size": 0}}, "embedded.corpus_size", ""),
    study("with a warm-up of text", {"embedded": {"warmup_steps": "x"}}, "warmup_steps", ""),
    study("with an empty config", {}, "e.yaml", "expected keys and values", config=file("e.yaml")),
    study("with a broken config", {}, "e.yaml", "invalid YAML", config=file("e.yaml", "arms: [1\n")),
    study("with a config of a list", {}, "e.yaml", "expected keys and values", config=file("e.yaml", "- 1\n")),
    study("with a missing config", {}, "nowhere.yaml", "", config="nowhere.yaml"),
    own("without configs", {}, "fit_configs", "got none"),
    own("with a missing config", {"fit_configs": ["nowhere.yaml"]}, "nowhere.yaml", ""),
    own("with configs of text", {"fit_configs": "x.yaml"}, "fit_configs", ""),
    own("with an unknown validation set", {**OWN, "validation_set": "x"}, "validation_set", "got 'x'"),
    # Its directory.
    reported("nothing", "study", "no cell of the study is finished"),
    reported("an empty study.yaml", "study.yaml", "not a study", **{"study/study.yaml": ""}),
    reported("a cut study.yaml", "study.yaml", "not valid YAML", **{"study/study.yaml": "arms:\n  dpo: {loss"}),
    reported("a study.yaml of a list", "study.yaml", "not a study", **{"study/study.yaml": "[1]"}),
    reported("a study.yaml with a list of arms", "study.yaml", "not a study", **{"study/study.yaml": "arms: [1]"}),
    reported("a study.yaml with an arm of text", "study.yaml", "not a study", **{"study/study.yaml": "arms: {dpo: x}"}),
    reported(
        "a study.yaml of another task", "task", "holds a study with", **{"study/study.yaml": "task: preference\n"}
    ),
    reported("a study.yaml that is a directory", "study.yaml", "not valid YAML", **{"study/study.yaml/x": ""}),
    result("of nothing", "", "JSONDecodeError"),
    result("that is cut", json.dumps(DONE)[:40], "JSONDecodeError"),
    result("of a list", [], "TypeError"),
    result("of null", None, "TypeError"),
    result("of text", '"done"', "TypeError"),
    result("nested deep", "[" * 200_000, "RecursionError"),
    result("without a status", {"seconds": 1.0}, "KeyError: 'status'"),
    result("with null as status", {**DONE, "status": None}, "status is 'None'"),
    result("with an unknown status", {**DONE, "status": "maybe"}, "status is 'maybe'"),
    result("with seconds of text", {**DONE, "seconds": "x"}, "could not convert"),
    result("with null as seconds", {**DONE, "seconds": None}, "TypeError"),
    result("with metrics of a list", {**DONE, "metrics": [1]}, "metrics is [1]"),
    result("with a rate of text", {**DONE, "metrics": {"win_rate": "x"}}, "metrics.win_rate is 'x', not a number"),
    result("with a rate of null", {**DONE, "metrics": {"win_rate": None}}, "metrics.win_rate is None, not a number"),
    result("with a metric of text", {**DONE, "metrics": {"kl": "x"}}, "metrics.kl is 'x', not a number"),
    result("with a metric of a list", {**DONE, "metrics": {"kl": [1]}}, "metrics.kl is [1], not a number"),
    result("with a run of a number", {**DONE, "run": 5}, "run is 5"),
    result("with a fingerprint of text", {**DONE, "fingerprint": "x"}, "fingerprint is 'x'"),
    result("with a shared fingerprint of a list", {**DONE, "fingerprint": {"shared": [1]}}, "fingerprint.shared"),
    reported("a format of text", "result.json", "has format x", **{CELL: json.dumps({**DONE, "format": "x"})}),
    reported("a later format", "result.json", "has format 9", **{CELL: json.dumps({**DONE, "format": 9})}),
    reported("an empty fingerprint", CELL[:-12], "other settings", **{CELL: json.dumps({**DONE, "fingerprint": {}})}),
    reported("percent", "result.json", "not in [0, 1]", **{CELL: json.dumps({**DONE, "metrics": {"win_rate": 50.0}})}),
    reported("results that are directories", "study", "no cell of the study is finished", **{f"{CELL}/x": ""}),
]
