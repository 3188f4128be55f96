"""torch.compile for parts of a model, chosen in the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from midisynth.errors import UsageError


class CompileModules(Callback):
    """Compiles modules of a model when training starts.

    They are compiled in place (`torch.nn.Module.compile`): names of parameters, checkpoints, weight averaging and
    everything outside training stay as they are. The first steps take minutes, and an input of another shape compiles
    once more, after which shapes are variables. A C++ compiler has to be installed.

        trainer:
          callbacks:
            - class_path: midisynth.training.compiling.CompileModules
              init_args:
                modules: [network]

    Args:
        modules: Names of modules within the model. What they call is compiled with them.
        backend: Compiler; "inductor" is torch's own, "aot_eager" only traces, to find out what cannot be compiled.
        mode: Of the compiler; "max-autotune" tries more, "reduce-overhead" records CUDA graphs.
    """

    def __init__(
        self,
        modules: Sequence[str],
        backend: str = "inductor",
        mode: Literal["default", "reduce-overhead", "max-autotune"] = "default",
    ):
        self._modules = list(modules)
        self._options = {"backend": backend, "mode": mode if backend == "inductor" else None}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        for name in self._modules:
            try:
                module = pl_module.get_submodule(name)
            except AttributeError as error:
                raise UsageError(f"CompileModules.modules: {type(pl_module).__name__} has no module {name}") from error
            module.compile(**self._options)
