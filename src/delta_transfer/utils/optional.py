"""Optional dependencies of graph tasks."""

import warnings

from delta_transfer.errors import EnvironmentError


def require_graph_libraries(name: str) -> None:
    """Import PyTorch Geometric and RDKit without their warnings.

    Args:
        name: the feature that needs them, for the message.

    Raises:
        EnvironmentError: if one of them is not installed.
    """
    try:
        with warnings.catch_warnings():
            # PyTorch Geometric compiles with torch.jit as soon as it is imported.
            warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
            import rdkit  # noqa: F401
            import torch_geometric  # noqa: F401
    except ModuleNotFoundError as error:
        raise EnvironmentError(
            f"{name} needs PyTorch Geometric and RDKit ({error}): pip install "
            "'delta-transfer[graph]'"
        ) from error
