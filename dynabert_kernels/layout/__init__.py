"""Value types: which heads and neurons each row of a packed batch uses."""

from dynabert_kernels.layout.packed_batch import PackedBatch
from dynabert_kernels.layout.plan import LayerPlan, Plan, group_by_shape
from dynabert_kernels.layout.subnet_shape import SubnetShape

__all__ = ["LayerPlan", "PackedBatch", "Plan", "SubnetShape", "group_by_shape"]
