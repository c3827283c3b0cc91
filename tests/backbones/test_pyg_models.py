import dataclasses

import pytest
import torch
from torch import nn

from delta_transfer.backbones.base import GraphSpec
from delta_transfer.backbones.registry import load_graph_backbone
from delta_transfer.backbones.saved import load_model, save_model
from delta_transfer.errors import UserError
from delta_transfer.features.stages import auto_taps
from delta_transfer.features.taps import Taps
from tests.backbones.graph_inputs import molecules

models = pytest.importorskip("torch_geometric.nn.models")

ATOMS = GraphSpec()
NUMBERS = GraphSpec(node_features="numbers", num_node_features=3)
KINDS = ["GIN", "GCN", "GraphSAGE", "GAT", "PNA"]


def build(name: str, spec: GraphSpec = ATOMS, **options):
    options = {"pretrained": False, **options}
    return load_graph_backbone(f"pyg/{name}", num_outputs=3, spec=spec, **options)


def numbers(*sizes: int):
    graphs = molecules(*sizes)
    x = torch.randn(len(graphs.x), 3, generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(graphs, x=x, edge_attr=None)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_those_of_pytorch_geometrics_own_network(kind):
    backbone = build(f"{kind}-3x16", NUMBERS)
    network = backbone.module.eval()
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm1d)):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.weight)
    options = {"deg": torch.tensor([0, 0, 0, 1])} if kind == "PNA" else {}
    if kind == "PNA":
        options["aggregators"] = ["mean", "min", "max", "std"]
        options["scalers"] = ["identity", "amplification", "attenuation"]
    own = getattr(models, kind)(16, 16, 3, norm="batch_norm", jk="last", **options).eval()
    own.lin = nn.Identity()
    for conv, norm, layer in zip(own.convs, own.norms, network.layers, strict=True):
        conv.load_state_dict(layer.convolution.state_dict())
        norm.load_state_dict(layer.norm.state_dict())
    graphs = numbers(6, 1, 9)
    with Taps(network, ["layers.2"]) as taps, torch.no_grad():
        network(graphs)
        expected = own(network.embedding(graphs.x), graphs.edge_index)
    torch.testing.assert_close(taps.outputs()["layers.2"], expected)


@pytest.mark.parametrize("spec", [ATOMS, NUMBERS])
def test_atoms_and_numbers_are_accepted(spec):
    backbone = build("GIN", spec)
    graphs = molecules(5, 6) if spec is ATOMS else numbers(5, 6)
    assert backbone.module(graphs).shape == (2, 3)
    assert backbone.module.head.in_features == 64
    assert backbone.module.eval()(spec.example()).shape == (1, 3)
    assert auto_taps(backbone.module) == ("layers.1", "layers.2", "layers.3", "layers.4")


def test_graph_features_are_sums_over_the_square_root_of_the_size():
    network = build("GIN-2x8", NUMBERS).module.eval()
    graphs = numbers(4, 1, 9)
    with Taps(network, ["layers.1", "pool"]) as taps, torch.no_grad():
        network(graphs)
    nodes = taps.outputs()["layers.1"].split([4, 1, 9])
    expected = torch.stack([part.sum(dim=0) / len(part) ** 0.5 for part in nodes])
    torch.testing.assert_close(taps.outputs()["pool"], expected)


def test_a_file_of_weights_is_required(tmp_path):
    with pytest.raises(UserError, match=r"'pyg/GIN' has no published weights.* pretrain DATA"):
        build("GIN", pretrained=True)
    network = build("GIN-2x8", NUMBERS).module
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    loaded = build("GIN-2x8", NUMBERS, pretrained=True, weights=tmp_path / "weights.pth").module
    for name, tensor in network.state_dict().items():
        assert name.startswith("head.") or torch.equal(tensor, loaded.state_dict()[name])
    with pytest.raises(UserError, match="the file does not fit pyg/GIN-2x9"):
        build("GIN-2x9", NUMBERS, weights=tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["GINE", "GIN-3", "GIN-3x", "gin", "EdgeCNN"])
def test_an_unknown_name_is_rejected_with_the_known_ones(name):
    with pytest.raises(UserError, match=r"unknown model 'pyg/.*pyg/GIN, pyg/GCN"):
        build(name)


def test_a_network_without_layers_is_rejected():
    with pytest.raises(UserError, match="pyg/GIN-0x8"):
        build("GIN-0x8")


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_folder_restores_it(kind, tmp_path):
    backbone = build(f"{kind}-2x8", NUMBERS)
    save_model(tmp_path, backbone, backbone.module, classes=["a", "b", "c"])
    loaded, _ = load_model(tmp_path)
    assert loaded.input_spec == NUMBERS
    graphs = numbers(4, 3)
    assert torch.equal(loaded.module.eval()(graphs), backbone.module.eval()(graphs))
