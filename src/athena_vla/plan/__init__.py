"""Will it fit, how fast will it be: predicted from bytes and arithmetic, and labelled so."""

from athena_vla.plan.devices import DEVICES, Device
from athena_vla.plan.planning import Plan, PlanConfig, plan
from athena_vla.plan.predict import Prediction, predict
from athena_vla.plan.training import TrainingMemory, TrainingPlan, training_memory, training_plan

__all__ = [
    "DEVICES",
    "Device",
    "Plan",
    "PlanConfig",
    "Prediction",
    "TrainingMemory",
    "TrainingPlan",
    "plan",
    "predict",
    "training_memory",
    "training_plan",
]
