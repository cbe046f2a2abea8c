"""The subcommands, one file each; `adadpo_lightning.cli.registry` finds them."""
