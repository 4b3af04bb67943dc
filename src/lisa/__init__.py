"""LISA: Likelihood Score Alignment for visual-condition side networks (arXiv 2606.27192).

    import lisa

    aligner = lisa.attach(controlnet, layer="down.5", out_channels=4)   # its parameters join the optimiser
    ...                                                                 # the usual controlled forward
    terms = aligner(target=target, prior=prior, timesteps=t)
    loss = mse(controlled, target) + terms.loss

Names are loaded when they are first used: ``import lisa`` itself imports nothing heavy.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lisa import core, processes, zoo
    from lisa.build.analysing import analyse
    from lisa.build.evaluation import evaluate
    from lisa.build.generation import GenerateOptions, generate
    from lisa.build.pretraining import pretrain
    from lisa.build.training import train
    from lisa.common.errors import LisaError
    from lisa.core import AlignmentTerms, LearningMeter, LikelihoodAligner
    from lisa.networks import SVDControlNet, SVDControlNetPipeline
    from lisa.sides.attach import attach
    from lisa.sides.embedding import init_condition_embedding
    from lisa.train.config import TrainConfig
    from lisa.train.pretrain.config import PretrainConfig

__version__ = "0.1.0"

# Public name -> where it is: "module:attribute", or a module.
_WHERE = {
    "attach": "lisa.sides.attach:attach",
    "init_condition_embedding": "lisa.sides.embedding:init_condition_embedding",
    "LikelihoodAligner": "lisa.core:LikelihoodAligner",
    "AlignmentTerms": "lisa.core:AlignmentTerms",
    "LearningMeter": "lisa.core:LearningMeter",
    "LisaError": "lisa.common.errors:LisaError",
    "SVDControlNet": "lisa.networks:SVDControlNet",
    "SVDControlNetPipeline": "lisa.networks:SVDControlNetPipeline",
    "TrainConfig": "lisa.train.config:TrainConfig",
    "PretrainConfig": "lisa.train.pretrain.config:PretrainConfig",
    "pretrain": "lisa.build.pretraining:pretrain",
    "generate": "lisa.build.generation:generate",
    "GenerateOptions": "lisa.build.generation:GenerateOptions",
    "core": "lisa.core",
    "processes": "lisa.processes",
    "zoo": "lisa.zoo",
}
# Verbs that have the name of one of the packages: the package itself can be called, and does this.
_CALLABLE_PACKAGES = {
    "train": "lisa.build.training:train",
    "evaluate": "lisa.build.evaluation:evaluate",
    "analyse": "lisa.build.analysing:analyse",
}

__all__ = [
    "AlignmentTerms",
    "GenerateOptions",
    "LearningMeter",
    "LikelihoodAligner",
    "LisaError",
    "PretrainConfig",
    "SVDControlNet",
    "SVDControlNetPipeline",
    "TrainConfig",
    "__version__",
    "analyse",
    "attach",
    "core",
    "evaluate",
    "generate",
    "init_condition_embedding",
    "pretrain",
    "processes",
    "train",
    "zoo",
]


def _load(where: str) -> Any:
    module, _, attribute = where.partition(":")
    return getattr(import_module(module), attribute) if attribute else import_module(module)


def __getattr__(name: str) -> Any:
    if name in _CALLABLE_PACKAGES:
        return import_module(f"lisa.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'lisa' has no attribute {name!r}")
    value = globals()[name] = _load(_WHERE[name])
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _CallablePackage(ModuleType):
    """``lisa.train`` is the package of the trainer, and ``lisa.train(config)`` trains."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _load(_CALLABLE_PACKAGES[self.__name__.rpartition(".")[2]])(*args, **kwargs)


class _Lisa(ModuleType):
    """This module: Python binds a package to its parent when it is imported, which is when it becomes callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CALLABLE_PACKAGES and isinstance(value, ModuleType):
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Lisa
