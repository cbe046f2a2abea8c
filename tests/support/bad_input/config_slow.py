"""More bad options, slow: each case builds a parser and a run."""

import json

from tests.support.bad_input.case import OPT, TRAIN, Case, D, L, T, file, folder_of, link, rows, text

# Nine levels of ten aliases each: a billion elements, if anything writes them out.
BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


def self_naming(folder):
    path = folder / "c.yaml"
    path.write_text(f"config: {path}\n")
    return path


CASES = [
    # Trainer.
    Case("lr NaN", {OPT + "lr": "nan"}, "model.optimizer", ""),
    Case("lr infinite", {OPT + "lr": "inf"}, "model.optimizer", ""),
    Case("betas of three", {OPT + "betas": "[0.9, 0.9, 0.9]"}, "model.optimizer", ""),
    Case("betas of text", {OPT + "betas": "high"}, "model.optimizer", ""),
    Case(
        "weight decay negative",
        {OPT + "weight_decay": -1},
        "model.optimizer.weight_decay",
        "expected a number of at least 0, got -1.0",
    ),
    Case("eps negative", {OPT + "eps": -1}, "model.optimizer.eps", "expected a number above 0, got -1.0"),
    Case("eps NaN", {OPT + "eps": "nan"}, "model.optimizer", ""),
    Case(
        "warm-up negative",
        {"model.scheduler.warmup_ratio": -0.1},
        "model.scheduler.warmup_ratio",
        "expected a share in [0, 1], got -0.1",
    ),
    Case("warm-up NaN", {"model.scheduler.warmup_ratio": "nan"}, "model.scheduler", ""),
    Case("beta NaN", {L + "beta": "nan"}, "loss.beta", "expected a finite number above 0, got 'nan"),
    Case("beta infinite", {L + "beta": "inf"}, "loss.beta", "expected a finite number above 0, got 'inf"),
    Case("beta a list", {L + "beta": "[0.1]"}, "loss.beta", "expected a finite number above 0, got [0.1]"),
    Case(
        "beta a schedule without an end",
        {L + "beta": '{"kind": "linear", "start": 0.1}'},
        "loss.beta",
        "expected a finite number above 0, got {'kind':",
    ),
    Case(
        "beta an unknown schedule",
        {L + "beta": '{"kind": "steps", "start": 0.1, "end": 0.2}'},
        "loss.beta",
        "expected a finite number above 0, got {'kind':",
    ),
    Case("ceiling NaN", {L + "ceiling": "nan"}, "model.loss", ""),
    Case("loss of another kind", {"model.loss": "os.system"}, "model.loss", ""),
    Case(
        "loss a mixture of nothing",
        {"model.loss": "Mixture", L + "losses": "[]", L + "weights": "[]"},
        "loss.weights",
        "expected one weight for each loss, got 0 losses",
    ),
    Case("loss a number", {"model.loss": 5}, "model.loss", ""),
    Case("clip negative", {T + "gradient_clip_val": -1}, "trainer.gradient_clip_val", "expected 0 or more, got -1"),
    Case("clip NaN", {T + "gradient_clip_val": "nan"}, "trainer.gradient_clip_val", ""),
    Case(
        "clip algorithm unknown",
        {T + "gradient_clip_algorithm": "both"},
        "trainer",
        "`gradient_clip_algorithm` both is invalid.",
    ),
    Case("no steps", {T + "max_steps": 0}, "trainer.max_steps", "expected at least 1, or -1 for no limit"),
    Case(
        "no epochs",
        {T + "max_epochs": 0, T + "max_steps": -1},
        "trainer.max_epochs",
        "expected at least 1, or -1 for no limit",
    ),
    Case("steps negative", {T + "max_steps": -5}, "trainer", "`max_steps` must be a non-negative integer or"),
    Case(
        "log every negative", {T + "log_every_n_steps": -3}, "trainer.log_every_n_steps", "expected 0 or more, got -3"
    ),
    Case(
        "check every zero epochs",
        {T + "check_val_every_n_epoch": 0, D + "val": rows()},
        "trainer.check_val_every_n_epoch",
        "expected 1 or more, got 0",
    ),
    Case(
        "validation interval negative",
        {T + "val_check_interval": -1, D + "val": rows()},
        "trainer",
        "You have passed invalid value -1 for",
    ),
    Case(
        "validation interval 1.5",
        {T + "val_check_interval": 1.5, D + "val": rows()},
        "trainer",
        "You have passed invalid value 1.5 for",
    ),
    Case(
        "validation interval of text",
        {T + "val_check_interval": "often", D + "val": rows()},
        "trainer",
        "Invalid time format for `val_check_interval`:",
    ),
    Case(
        "limit negative",
        {T + "limit_val_batches": -1, D + "val": rows()},
        "trainer",
        "You have passed invalid value -1 for",
    ),
    Case(
        "overfit a fraction of nothing",
        {T + "overfit_batches": 0.0001},
        "trainer",
        "You requested to check 0.0001 of the",
    ),
    Case("max_time of nonsense", {T + "max_time": "soon"}, "trainer", "`Timer(duration='soon')` is not a valid"),
    Case("profiler unknown", {T + "profiler": "nonesuch"}, "trainer", "When passing string value for the `profiler`"),
    Case("plugin unknown", {T + "plugins": "nonesuch"}, "trainer.plugins", ""),
    Case("sync batch norm of text", {T + "sync_batchnorm": "maybe"}, "trainer.sync_batchnorm", ""),
    Case("nodes zero", {T + "num_nodes": 0}, "trainer", "`num_nodes` must be a positive integer, but got"),
    Case("nodes negative", {T + "num_nodes": -1}, "trainer", "`num_nodes` must be a positive integer, but got"),
    Case("devices negative", {T + "devices": -2}, "trainer", "`devices` selected with `CPUAccelerator` should"),
    Case("devices of text", {T + "devices": "many"}, "trainer", "`devices` selected with `CPUAccelerator` should"),
    Case("devices a list", {T + "devices": "[7]"}, "trainer", "`devices` selected with `CPUAccelerator` should"),
    Case("detect anomaly of text", {T + "detect_anomaly": "x"}, "trainer.detect_anomaly", ""),
    Case("barebones", {T + "barebones": "true"}, "trainer", "`Trainer(barebones=True,"),
    Case(
        "reload every epoch",
        {T + "reload_dataloaders_every_n_epochs": -1},
        "trainer",
        "expected 0 or more, got -1",
    ),
    Case("seed of text", {"seed_everything": "x"}, "seed_everything", ""),
    Case("seed negative", {"seed_everything": -1}, "seed_everything", "expected a number in [0, 2**32), got -1"),
    Case("seed huge", {"seed_everything": 2**40}, "seed_everything", "expected a number in [0, 2**32)"),
    # Callbacks.
    Case(
        "accumulation scheduler",
        {T + "callbacks": '{"class_path": "GradientAccumulationScheduler", "init_args": {"scheduling": {"0": 4}}}'},
        "trainer.callbacks",
        "GradientAccumulationScheduler contradicts the",
    ),
    Case(
        "accumulation scheduler without a schedule",
        {T + "callbacks": "GradientAccumulationScheduler"},
        "trainer.callbacks",
        "",
    ),
    Case(
        "timer of nonsense",
        {T + "callbacks": '{"class_path": "Timer", "init_args": {"duration": "soon"}}'},
        "config",
        "`Timer(duration='soon')` is not a valid",
    ),
    Case(
        "timer of a number",
        {T + "callbacks": '{"class_path": "Timer", "init_args": {"duration": 5}}'},
        "trainer.callbacks",
        "",
    ),
    Case("early stopping on nothing", {T + "callbacks": "EarlyStopping"}, "trainer.callbacks", ""),
    Case(
        "early stopping mode",
        {
            T + "callbacks": '{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "mode": "up"}}',
            D + "val": rows(),
        },
        "config",
        "`mode` can be min, max, got up",
    ),
    Case(
        "averaging",
        {T + "callbacks": '{"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": 0.1}}'},
        "trainer.callbacks",
        "StochasticWeightAveraging copies the module",
    ),
    Case(
        "batch size finder",
        {T + "callbacks": "BatchSizeFinder"},
        "trainer.callbacks",
        "changes the batch size of loaders",
    ),
    Case(
        "learning rate finder",
        {T + "callbacks": "LearningRateFinder"},
        "trainer.callbacks",
        "does not compare over so few pairs",
    ),
    Case("backbone finetuning", {T + "callbacks": "BackboneFinetuning"}, "trainer.callbacks", "train adapters"),
    Case(
        "pruning",
        {T + "callbacks": '{"class_path": "ModelPruning", "init_args": {"pruning_fn": "l1_unstructured"}}'},
        "trainer.callbacks",
        "prune the exported model",
    ),
    Case("callbacks a number", {T + "callbacks": 5}, "trainer.callbacks", ""),
    Case("callbacks a path", {T + "callbacks": "nowhere.yaml"}, "trainer.callbacks", ""),
    Case(
        "export callback over files",
        {
            T + "callbacks": lambda f, m: json.dumps(
                {"class_path": "adadpo_lightning.callbacks.ExportHF", "init_args": {"path": str(f)}}
            ),
            TRAIN: rows(),
        },
        "output",
        "exists and is not empty",
    ),
    Case(
        "export callback to a link",
        {
            T + "callbacks": lambda f, m: json.dumps(
                {"class_path": "adadpo_lightning.callbacks.ExportHF", "init_args": {"path": str(link(m, "out")(f, m))}}
            )
        },
        "output",
        "is a symbolic link, got no directory",
    ),
    Case(
        "checkpoint outside",
        {"checkpoint.filename": "../../x"},
        "checkpoint.filename",
        "expected a name inside the checkpoint",
    ),
    Case(
        "checkpoint at the root",
        {"checkpoint.filename": "/x"},
        "checkpoint.filename",
        "expected a name inside the checkpoint",
    ),
    Case("checkpoint with a broken field", {"checkpoint.filename": "{step"}, "checkpoint.filename", "is no template"),
    Case("checkpoint keeps -5", {"checkpoint.save_top_k": -5}, "config", "save_top_k=-5"),
    Case("checkpoint every negative steps", {"checkpoint.every_n_train_steps": -1}, "config", "every_n_train_steps=-1"),
    Case("checkpoint every -1 epochs", {"checkpoint.every_n_epochs": -1}, "config", "every_n_epochs=-1"),
    Case("checkpoint mode", {"checkpoint.mode": "up"}, "config", "`mode` can be min, max but got up"),
    Case(
        "checkpoint directory", {"checkpoint.dirpath": "x"}, "config", "checkpoint.dirpath follows from output_dir: set"
    ),
    # Loggers.
    Case(
        "logger without its package",
        {T + "logger": "lightning.pytorch.loggers.CometLogger"},
        "config",
        "Problem with given class_path",
    ),
    Case(
        "logger below a file",
        {
            T + "logger": lambda f, m: json.dumps(
                {"class_path": "CSVLogger", "init_args": {"save_dir": str(file("x")(f, m))}}
            )
        },
        "lightning_logs",
        "it lies below a file",
    ),
    # Config files.
    Case("config empty", {"config": file("c.yaml")}, "c.yaml", "expected keys and values, got NoneType"),
    Case("config a number", {"config": file("c.yaml", "5")}, "c.yaml", "expected keys and values, got int"),
    Case("config of text", {"config": file("c.yaml", "hello")}, "c.yaml", "expected keys and values, got str"),
    Case(
        "config binary",
        {"config": text(bytes(range(256)), "c.yaml")},
        "c.yaml",
        "invalid YAML: 'utf-8' codec can't decode byte",
    ),
    Case(
        "config of Latin-1",
        {"config": text("a: é\n".encode("latin-1"), "c.yaml")},
        "c.yaml",
        "invalid YAML: 'utf-8' codec can't decode byte",
    ),
    Case(
        "config with an object",
        {"config": file("c.yaml", "model: !!python/object/apply:os.system [ls]\n")},
        "c.yaml",
        "invalid YAML: could not determine a constructor",
    ),
    Case(
        "config with an unknown tag",
        {"config": file("c.yaml", "model: !env HOME\n")},
        "c.yaml",
        "invalid YAML: could not determine a constructor",
    ),
    Case(
        "config with a key twice",
        {"config": file("c.yaml", "data:\n  max_length: 3\ndata:\n  seed: 1\n")},
        "c.yaml",
        "invalid YAML: the key 'data' is in line 1 and",
    ),
    Case(
        "config nested deep",
        {"config": file("c.yaml", "a: " + "[" * 5000)},
        "c.yaml",
        "invalid YAML: maximum recursion depth exceeded",
    ),
    Case("config of aliases", {"config": file("c.yaml", BOMB)}, "c.yaml", "more than 100,000 values"),
    Case(
        "config with tabs",
        {"config": file("c.yaml", "data:\n\tmax_length: 3\n")},
        "c.yaml",
        "invalid YAML: while scanning for the next token",
    ),
    Case("config a directory", {"config": lambda f, m: f}, "config", ""),
    Case("config with numbers as keys", {"config": file("c.yaml", "5: 6\n")}, "config", "Key must be a string, got: 5"),
    Case(
        "config with null as a section",
        {"config": file("c.yaml", "model:\n")},
        "config",
        "Unexpected config: model",
    ),
    Case(
        "config with a list as a section",
        {"config": file("c.yaml", "data: [1]\n")},
        "data",
        "expected keys and values, got null",
    ),
    Case(
        "config with null as the trainer",
        {"config": file("c.yaml", "trainer:\n")},
        "config",
        "Unexpected config: trainer",
    ),
    Case(
        "config JSON cut",
        {"config": file("c.json", '{"data": {"max_length": 3')},
        "c.json",
        "invalid YAML: while parsing a flow mapping in",
    ),
    Case("config that names itself", {"config": lambda f, m: self_naming(f)}, "config", "Config file loop detected"),
    Case(
        "config of a study",
        {"config": file("c.yaml", "arms: {}\nlearning_rates: [1]\n")},
        "config",
        "Option 'learning_rates' is not accepted",
    ),
    Case("option without a value", {"data.max_length": ""}, "data.max_length", ""),
    Case("auto_resume of text", {"auto_resume": "maybe"}, "auto_resume", ""),
    Case("a list where a number belongs", {OPT + "lr": "[1e-3]"}, "model.optimizer", ""),
    # The file system.
    Case("output_dir empty", {"output_dir": ""}, "output_dir", "expected the name of a file or directory"),
    Case("output_dir with a NUL", {"output_dir": "a\0b"}, "output_dir", "expected the name of a file or directory"),
    Case(
        "output_dir too long",
        {"output_dir": lambda f, m: f / ("a" * 300)},
        "aaaa",
        "its name is too long",
    ),
    Case(
        "output_dir a link to nothing",
        {"output_dir": link("nowhere", "out")},
        "output_dir",
        "cannot be written: File exists",
    ),
    Case(
        "output_dir a link to itself",
        {"output_dir": link("out", "out")},
        "output_dir",
        "cannot be written: File exists",
    ),
    Case(
        "output_dir with surrogates", {"output_dir": "\udcff"}, "output_dir", "expected the name of a file or directory"
    ),
    Case(
        "output_dir holds a run", {"output_dir": folder_of(**{"config.yaml": ""})}, "output_dir", "already holds a run"
    ),
]
