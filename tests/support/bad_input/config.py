"""Bad options and config files: loss, optimizer, trainer, callbacks, loggers, YAML, paths."""

from tests.support.bad_input.case import OPT, Case, D, L, T, file, rows

CASES = [
    # Losses.
    Case("no loss", {"model.loss": None}, "loss", ""),
    Case("unknown loss", {"model.loss": "adapdo"}, "model.loss", "AdaDPO"),
    Case("beta zero", {L + "beta": 0}, "beta", "above 0"),
    Case("beta negative", {L + "beta": -0.1}, "beta", "above 0"),
    Case("beta text", {L + "beta": "strong"}, "beta", "number"),
    Case("smoothing too large", {L + "label_smoothing": 0.5}, "label_smoothing", ""),
    Case("ceiling below floor", {L + "ceiling": 0.5, L + "floor": 1.0}, "floor", ""),
    Case("ceiling zero", {L + "ceiling": 0}, "ceiling", ""),
    Case("unknown option of a loss", {L + "betta": 0.1}, "betta", "beta"),
    Case("option of another loss", {L + "gamma_beta_ratio": 0.1}, "gamma_beta_ratio", ""),
    Case("space unknown", {L + "space": "time"}, "space", "policy"),
    Case("reference none", {"model.reference": "none"}, "model.reference", "needs a reference"),
    Case("adapter_off without LoRA", {"model.reference": "adapter_off"}, "model.reference", "LoRA"),
    # Optimisation and trainer.
    Case("rate zero", {OPT + "lr": 0}, "model.optimizer.lr", "above 0"),
    Case("rate negative", {OPT + "lr": -1e-6}, "model.optimizer.lr", "above 0"),
    Case("betas outside", {OPT + "betas": "[0.9, 1.0]"}, "model.optimizer.betas", "[0, 1)"),
    Case("warm-up above one", {"model.scheduler.warmup_ratio": 2}, "warmup_ratio", "[0, 1]"),
    Case("scheduler unknown", {"model.scheduler.name": "cosin"}, "model.scheduler", "cosine"),
    Case("nothing bounds the run", {T + "max_epochs": -1, T + "max_steps": -1}, "trainer.max_epochs", "max_steps"),
    Case("accumulation contradicts", {T + "accumulate_grad_batches": 7}, "accumulate_grad_batches", "remove it"),
    Case("limit inside a step", {T + "limit_train_batches": 1}, "limit_train_batches", "multiple"),
    Case("validation every 0", {T + "val_check_interval": 0, D + "val": rows()}, "val_check_interval", "more than 0"),
    Case("validation never", {T + "val_check_interval": 9, D + "val": rows()}, "val_check_interval", "an epoch's 2"),
    Case("monitor of no logger", {T + "callbacks": "LearningRateMonitor", T + "logger": "false"}, "trainer", "logger"),
    Case("strategy unknown", {T + "strategy": "fsdp3"}, "fsdp3", ""),
    Case("GPU that is not there", {T + "accelerator": "gpu"}, "", "gpu"),
    Case("precision nonsense", {T + "precision": "13"}, "precision", ""),
    Case("precision that spoils", {T + "precision": "bf16-true"}, "trainer.precision", "bf16-mixed"),
    Case("devices zero", {T + "devices": 0}, "devices", ""),
    Case("unknown callback", {T + "callbacks": "NoSuchCallback"}, "callbacks", ""),
    Case("unknown logger", {T + "logger": "NoSuchLogger"}, "logger", ""),
    # Configs and the command line.
    Case("unknown option", {"data.trian": "x"}, "data.trian", "data.train"),
    Case("unknown section", {"modle.loss": "dpo"}, "modle", ""),
    Case("config missing", {"config": "nowhere.yaml"}, "nowhere.yaml", "not exist"),
    Case("config broken", {"config": file("c.yaml", "a: [1\n")}, "c.yaml", ""),
    Case("config a list", {"config": file("c.yaml", "- 1\n- 2\n")}, "c.yaml", ""),
    Case("config with an unknown key", {"config": file("c.yaml", "data:\n  trian: x\n")}, "trian", "train"),
    Case("config with a wrong type", {"config": file("c.yaml", "data:\n  max_length: many\n")}, "max_length", ""),
    Case("unknown command", {}, "command", "did you mean 'fit'", command="fitt"),
    # The file system.
    Case("output is a file", {"output_dir": file("out_file")}, "output_dir", "is a file"),
    Case("output below a file", {"output_dir": lambda f, m: file("out_file")(f, m) / "run"}, "output_dir", ""),
    Case("output cannot be written", {"output_dir": "/proc/run"}, "output_dir", ""),
]
