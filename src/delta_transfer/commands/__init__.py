"""The commands. Everything is imported inside the command that needs it, so that help is fast."""

from collections.abc import Callable, Sequence

from delta_transfer.commands.looking import attention, layers, methods, pretrain
from delta_transfer.commands.runs import app, evaluate, export, predict, push, train
from delta_transfer.commands.studies import bench, compare, demo, search

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "push": push,
    "app": app,
    "attention": attention,
    "compare": compare,
    "search": search,
    "bench": bench,
    "layers": layers,
    "pretrain": pretrain,
    "methods": methods,
    "demo": demo,
}
