"""FSDP2: Lightning's `ModelParallelStrategy` with this package's sharding, and atomic checkpoints."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from adadpo_lightning import log
from adadpo_lightning.checkpoints.integrity import shard_digests, write_manifest
from adadpo_lightning.checkpoints.shards import is_sharded, stored_weights
from adadpo_lightning.compat import is_lost_rank
from adadpo_lightning.errors import UserError
from adadpo_lightning.models.sharding import Sharding
from adadpo_lightning.ranks import set_data_group

Dtype = Literal["float32", "bfloat16", "float16"]


class FSDP2(ModelParallelStrategy):
    """Fully sharded data parallelism: weights, gradients, optimizer state and the frozen reference.

    With tensor parallelism each group of `tensor_parallel_size` neighboring ranks, best within a node, works on the
    same micro-batch: attention heads, feed-forward layers, embedding and head are split over it (arXiv 1909.08053), and
    the parts are sharded over the groups.

    Args:
        replicas: Number of replicas of the sharded model (HSDP). Each is sharded over ``ranks / replicas`` neighboring
            ranks, so that with one replica per node, weights are gathered only within nodes.
        param_dtype: Data type of the gathered weights and of the computation. The stored weights, which the optimizer
            updates, keep their own. null computes in the data type of the stored weights.
        reduce_dtype: Data type in which gradients are summed over ranks; null means `param_dtype`.
        cpu_offload: Keep shards, gradients and optimizer state in CPU memory.
        save_distributed_checkpoint: Write checkpoints as directories of shards; false gathers them into one file on
            rank zero.
        process_group_backend: Name of a torch backend; null means Lightning's default for the device.
        timeout: Time after which a collective that waits for a lost rank fails.
        data_parallel_size: Number of groups, each with data of its own; null means all ranks divided by
            `tensor_parallel_size`.
        tensor_parallel_size: Number of ranks in a group; 1 for no tensor parallelism.

    Raises:
        UserError: If the ranks cannot be divided as the sizes say, or tensor parallelism is combined with `replicas` or
            `cpu_offload`.
    """

    def __init__(
        self,
        replicas: int = 1,
        param_dtype: Dtype | None = None,
        reduce_dtype: Dtype | None = "float32",
        cpu_offload: bool = False,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
        data_parallel_size: int | None = None,
        tensor_parallel_size: int = 1,
    ) -> None:
        super().__init__(
            tensor_parallel_size=tensor_parallel_size,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.data_parallel_size = data_parallel_size
        self.tensor_parallel_size = tensor_parallel_size
        self.replicas = replicas
        self.param_dtype = param_dtype
        self.reduce_dtype = reduce_dtype
        self.cpu_offload = cpu_offload
        self._sharding: Sharding | None = None

    @property
    def sharding(self) -> Sharding:
        """How models are sharded; available after `setup_environment`."""
        if self._sharding is None:
            raise RuntimeError("the process group is not initialized yet")
        return self._sharding

    def setup_environment(self) -> None:
        """Join the process group, and create the device mesh."""
        from torch.distributed.device_mesh import init_device_mesh

        ranks = self.num_nodes * self.num_processes
        self.check_sizes(ranks)
        self._data_parallel_size = ranks // self.tensor_parallel_size
        if self.cpu_offload and self._process_group_backend is None and self.root_device.type == "cuda":
            # The norm of offloaded gradients is reduced over ranks on the CPU.
            self._process_group_backend = "cpu:gloo,cuda:nccl"
        super().setup_environment()
        mesh = self.device_mesh["data_parallel"]
        if self.replicas > 1:
            shape = (self.replicas, ranks // self.replicas)
            mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=("replicate", "shard"))
        splits = self.tensor_parallel_size > 1
        set_data_group(mesh.get_group() if splits else None)
        self._sharding = Sharding(
            mesh,
            self.root_device,
            None if self.param_dtype is None else getattr(torch, self.param_dtype),
            None if self.reduce_dtype is None else getattr(torch, self.reduce_dtype),
            self.cpu_offload,
            self.device_mesh["tensor_parallel"] if splits else None,
        )

    def check_sizes(self, ranks: int) -> None:
        """Check the options for a number of ranks.

        Raises:
            UserError: If the ranks cannot be divided as the sizes say, or tensor parallelism is combined with
                `replicas` or `cpu_offload`.
        """
        field, tensor, data = "trainer.strategy", self.tensor_parallel_size, self.data_parallel_size
        if tensor < 1 or ranks % tensor:
            raise UserError(f"{field}.tensor_parallel_size", f"expected a divisor of the {ranks} ranks, got {tensor}")
        if data not in (None, ranks // tensor):
            raise UserError(
                f"{field}.data_parallel_size",
                f"expected {ranks} ranks / tensor_parallel_size {tensor} = {ranks // tensor}, got {data}",
                "set it to null",
            )
        if self.replicas < 1 or ranks % self.replicas:
            raise UserError(f"{field}.replicas", f"expected a divisor of the {ranks} ranks, got {self.replicas}")
        if tensor > 1 and (self.replicas > 1 or self.cpu_offload):
            raise UserError(
                f"{field}.tensor_parallel_size",
                "tensor parallelism is not supported with replicas above 1 or cpu_offload",
                "set replicas to 1 and cpu_offload to false, or tensor_parallel_size to 1",
            )

    def teardown(self) -> None:
        """Forget which ranks have data of their own: the next strategy of this process may differ."""
        set_data_group(None)
        super().teardown()

    def model_to_device(self) -> None:
        """Do nothing: sharding already placed weights and buffers, and offloaded ones must stay on the CPU."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The trained weights. Frozen weights belong to the base model, which a LoRA checkpoint refers to."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        full = not self._save_distributed_checkpoint
        options = StateDictOptions(full_state_dict=full, cpu_offload=True, ignore_frozen_params=self._ignores_frozen)
        return get_model_state_dict(self._module, options=options)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write next to the target and rename when complete, so that a crash never damages an earlier checkpoint."""
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        target = Path(self.broadcast(str(filepath)))
        partial, old = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.old")
        if self.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)
        self.barrier("old partial files are removed")
        super().save_checkpoint(checkpoint, partial, storage_options)
        self.barrier("all shards are written")
        digests: list[dict[str, list[int]]] = [{} for _ in range(self.world_size)]
        torch.distributed.all_gather_object(digests, shard_digests(partial, self.global_rank))
        if self.is_global_zero:
            write_manifest(partial, {name: digest for part in digests for name, digest in part.items()})
            if target.exists():
                target.rename(old)
            partial.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        self.barrier("the checkpoint is complete")

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load this rank's part of a checkpoint, written by any number of ranks or stored as a single file."""
        path = Path(self.broadcast(str(checkpoint_path)))
        if path.is_file():
            return super().load_checkpoint(path, weights_only)
        if not is_sharded(path):
            raise UserError("ckpt_path", f"checkpoint {path} not found", "pass a file or a directory of shards")
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            get_model_state_dict,
            get_optimizer_state_dict,
            set_model_state_dict,
            set_optimizer_state_dict,
        )

        from adadpo_lightning.checkpoints.shard_reader import load_shards

        options = StateDictOptions(
            cpu_offload=self.cpu_offload, ignore_frozen_params=self._ignores_frozen, strict=False
        )
        own, stored = get_model_state_dict(self._module, options=options), stored_weights(path)
        weights = {"state_dict": {name: weight for name, weight in own.items() if name in stored}}
        load_shards(weights, path)
        set_model_state_dict(self._module, weights["state_dict"], options=options)
        for number, optimizer in enumerate(self.optimizers):
            state = {f"optimizer_{number}": get_optimizer_state_dict(self._module, optimizer, options=options)}
            load_shards(state, path)
            set_optimizer_state_dict(
                self._module, optimizer, optim_state_dict=state[f"optimizer_{number}"], options=options
            )
        metadata: dict[str, Any] = torch.load(path / "meta.pt", map_location="cpu", weights_only=True)
        return metadata

    def on_exception(self, exception: BaseException) -> None:
        """Explain a broken connection: the traceback only shows where this rank was waiting."""
        if is_lost_rank(exception):
            log.error(
                f"Rank {self.global_rank} stops: another rank has died or did not answer within {self._timeout} "
                "(see its own output). The last checkpoint is complete: resume with --ckpt_path last.",
                every_rank=True,
            )
        super().on_exception(exception)

    @property
    def _ignores_frozen(self) -> bool:
        """Frozen weights are stored only for modules that set ``saves_frozen_weights``."""
        return not getattr(self._module, "saves_frozen_weights", False)

    @property
    def _module(self) -> torch.nn.Module:
        assert self.model is not None  # noqa: S101  # set by Lightning before any of this runs
        return self.model
