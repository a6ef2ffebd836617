"""Task circuits of any supported causal language model, dense or sparse. Independent of training."""

from lit_sparse.circuits.edge_scores import eap, exact
from lit_sparse.circuits.faithfulness import Curve, Evaluator, Ranking, curve
from lit_sparse.circuits.forward import activations, run_edges, run_nodes
from lit_sparse.circuits.measure import measure
from lit_sparse.circuits.node_scores import NodeEffects, patch_nodes
from lit_sparse.circuits.prompts import Prompts, group
from lit_sparse.circuits.pruning import prune
from lit_sparse.circuits.settings import Settings
from lit_sparse.circuits.tasks import TASKS, NotExpressible, Pair, Task, get_task

__all__ = [
    "TASKS",
    "Curve",
    "Evaluator",
    "NodeEffects",
    "NotExpressible",
    "Pair",
    "Prompts",
    "Ranking",
    "Settings",
    "Task",
    "activations",
    "curve",
    "eap",
    "exact",
    "get_task",
    "group",
    "measure",
    "patch_nodes",
    "prune",
    "run_edges",
    "run_nodes",
]
