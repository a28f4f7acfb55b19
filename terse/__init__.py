"""Terse from Python: train a small model to reason briefly, look at what came of it, and ask the result.

    import terse

    config = terse.load_config("quickstart", {"run.name": "first", "rl.kl_beta": 1e-3})
    print(terse.plan(config).text)
    result = terse.run(config)
    print(result.summary["length_reduction"])
    with terse.load_export(result.export) as model:
        print(model.ask("37+58-12=?").text)

Functions of your own, which a configuration names as `package.module:function`, have the types `Verifier`, `LengthReward`,
`PolicyLoss`, `AdvantageEstimator`, `TaskRows` and `SameAnswer`; what they are given and return is here too
(docs/guides/functions.md).

Everything here is what the command line calls. Names are imported when they are first used, so `import terse` is quick,
and `terse.load_export` needs the extra `device` alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actors.losses import LossInputs as LossInputs
    from actors.losses import LossSettings as LossSettings
    from actors.losses import PolicyLoss as PolicyLoss
    from actors.losses import Surrogate as Surrogate
    from configs.errors import UserError as UserError
    from configs.load import ConfigError as ConfigError
    from configs.load import load_config as load_config
    from configs.schema.run import RunConfig as RunConfig
    from deploy.device.runtime import Answer as Answer
    from deploy.device.runtime import DeviceModel as DeviceModel
    from deploy.device.runtime import Question as Question
    from deploy.device.runtime import load_export as load_export
    from deploy.manifest import ExportError as ExportError
    from orchestrator.api import RunResult as RunResult
    from orchestrator.api import SweepResult as SweepResult
    from orchestrator.api import evaluate as evaluate
    from orchestrator.api import export as export
    from orchestrator.api import plan as plan
    from orchestrator.api import report as report
    from orchestrator.api import run as run
    from orchestrator.api import status as status
    from orchestrator.api import sweep as sweep
    from orchestrator.data.sources import TaskRows as TaskRows
    from orchestrator.record.evaluations import EvaluationRecord as EvaluationRecord
    from orchestrator.rl.advantage import AdvantageEstimator as AdvantageEstimator
    from orchestrator.tools.plan import Plan as Plan
    from rewards.base import AnswerVerdict as AnswerVerdict
    from rewards.base import BadReference as BadReference
    from rewards.base import Outcome as Outcome
    from rewards.base import Reference as Reference
    from rewards.base import SameAnswer as SameAnswer
    from rewards.base import Verifier as Verifier
    from rewards.length.types import LengthInputs as LengthInputs
    from rewards.length.types import LengthReward as LengthReward
    from rewards.length.types import Score as Score

_PLACES = {
    "load_config": "configs.load",
    "plan": "orchestrator.api",
    "run": "orchestrator.api",
    "evaluate": "orchestrator.api",
    "sweep": "orchestrator.api",
    "export": "orchestrator.api",
    "report": "orchestrator.api",
    "status": "orchestrator.api",
    "load_export": "deploy.device.runtime",
    **dict.fromkeys(
        ("AnswerVerdict", "BadReference", "Outcome", "Reference", "SameAnswer", "Verifier"), "rewards.base"
    ),
    **dict.fromkeys(("LengthInputs", "LengthReward", "Score"), "rewards.length.types"),
    **dict.fromkeys(("LossInputs", "LossSettings", "PolicyLoss", "Surrogate"), "actors.losses"),
    "AdvantageEstimator": "orchestrator.rl.advantage",
    "TaskRows": "orchestrator.data.sources",
    "Answer": "deploy.device.runtime",
    "ConfigError": "configs.load",
    "DeviceModel": "deploy.device.runtime",
    "EvaluationRecord": "orchestrator.record.evaluations",
    "ExportError": "deploy.manifest",
    "Plan": "orchestrator.tools.plan",
    "Question": "deploy.device.runtime",
    "RunConfig": "configs.schema.run",
    "RunResult": "orchestrator.api",
    "SweepResult": "orchestrator.api",
    "UserError": "configs.errors",
}
"""Public name → the module that has it."""
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'terse' has no attribute {name!r}; it has {', '.join(sorted(_PLACES))}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_PLACES)
