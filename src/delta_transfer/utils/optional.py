"""PyTorch Geometric and RDKit, which only graph tasks need: there, and quiet, or a message."""

import warnings

from delta_transfer.errors import UserError


def require_graph_libraries(name: str) -> None:
    """Imports both libraries, so that the imports after this are of libraries that are there.

    Args:
        name: what they are needed for, for the message.

    Raises:
        UserError: if one of them is not installed.
    """
    try:
        with warnings.catch_warnings():
            # PyTorch Geometric compiles with torch.jit as soon as it is imported.
            warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
            import rdkit  # noqa: F401
            import torch_geometric  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            f"{name} needs PyTorch Geometric and RDKit ({error}): pip install "
            "'delta-transfer[graph]'"
        ) from error
