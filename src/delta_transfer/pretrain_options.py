"""The options of pretrain."""

import dataclasses
from typing import Literal

from delta_transfer.errors import UserError
from delta_transfer.options import Device, check_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """Options of pretrain.

    Args:
        data: molecules or graphs, whose labels are not used: a file of SMILES (.smi or .txt, one
            at the beginning of each line, or .csv, whose rows with test in a column split are left
            out), rdkit/nci (about 4,900 molecules that RDKit brings), or moleculenet/NAME or
            tu/NAME, whose test split is left out.
        out: folder for the weights; runs/pretrain-DATA-TIME if not given.
        overwrite: replace the pretraining in that folder.
        model: network for graphs, pretrain-gnns/gin|gcn|graphsage for molecules or
            pyg/GIN|GCN|GraphSAGE|GAT|PNA (pyg/GIN-3x128 for 3 layers of 128 features).
        weights: start from the weights in this file; from random ones if not given.
        objective: what is learnt. attribute-masking hides what some nodes are, to be told from
            their neighbours; context-prediction asks which surroundings belong to which node.
        mask_rate: share of the nodes of each graph that attribute-masking hides.
        epochs: passes over the graphs.
        batch_size: graphs at a time.
        lr: learning rate of Adam at the start; it falls to zero along a cosine.
        seed: of first weights, order, what is hidden, and the graphs held out to measure by; for
            moleculenet/NAME and tu/NAME of their splits too, as for train.
        split: how moleculenet/NAME is split: auto, scaffold or random, as for train.
        smiles_column: of a CSV file; smiles if not given.
        data_root: where named data sets lie or are downloaded to.
        device: auto, cpu, cuda or mps.
    """

    data: str
    out: str | None = None
    overwrite: bool = False
    model: str = "pretrain-gnns/gin"
    weights: str | None = None
    objective: Literal["attribute-masking", "context-prediction"] = "attribute-masking"
    mask_rate: float = 0.15
    epochs: int = 20
    batch_size: int = 256
    lr: float = 0.001
    seed: int = 0
    split: Literal["auto", "scaffold", "random"] = "auto"
    smiles_column: str | None = None
    data_root: str | None = None
    device: Device = "auto"

    def __post_init__(self) -> None:
        check_least("--epochs", self.epochs, 1)
        check_least("--batch-size", self.batch_size, 1)
        check_least("--seed", self.seed, 0)
        if not 0 < self.mask_rate < 1:
            raise UserError(
                f"--mask-rate must be above 0 and below 1, for example 0.15, got {self.mask_rate:g}"
            )
        if not 0 < self.lr <= 1:
            raise UserError(
                f"--lr must be above 0 and at most 1, for example 0.001, got {self.lr:g}"
            )
