import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from delta_transfer.backbones.base import GraphSpec
from delta_transfer.backbones.pretrain_gnns import WEIGHT_URLS
from delta_transfer.backbones.registry import load_backbone, load_graph_backbone
from delta_transfer.errors import UserError
from delta_transfer.features.stages import auto_taps
from delta_transfer.features.taps import Taps
from tests.backbones.graph_inputs import molecules

RELEASED_FILES = Path(__file__).resolve().parents[3] / "shared/data/graphs/weights"
ATOMS = GraphSpec()


def build(kind: str, **options):
    name = f"pretrain-gnns/{kind}"
    return load_graph_backbone(name, num_outputs=3, spec=ATOMS, pretrained=False, **options)


def plain(kind: str, state: dict[str, Tensor], graphs) -> list[Tensor]:
    """Features of atoms after each layer: edge by edge, as Hu et al. 2020 describe it.

    Args:
        kind: of network.
        state: the tensors by their published names.
        graphs: the molecules.
    """
    x = state["x_embedding1.weight"][graphs.x[:, 0]] + state["x_embedding2.weight"][graphs.x[:, 1]]
    rows = torch.arange(len(x))
    source, target = torch.cat([graphs.edge_index, torch.stack([rows, rows])], dim=1)
    loops = torch.tensor([[4, 0]]).expand(len(x), 2)
    bond_type, direction = torch.cat([graphs.edge_attr, loops]).T
    degree = torch.zeros(len(x), dtype=x.dtype).index_add_(0, target, x.new_ones(len(target)))
    found = []
    for i in range(5):

        def tensor(name: str, layer: str = f"gnns.{i}.") -> Tensor:
            return state[layer + name]

        if kind != "gin":
            x = x @ tensor("linear.weight").T + tensor("linear.bias")
        edges = tensor("edge_embedding1.weight")[bond_type]
        edges = edges + tensor("edge_embedding2.weight")[direction]
        messages = x[source] + edges
        if kind == "gcn":
            messages = messages * (degree[source] * degree[target])[:, None] ** -0.5
        h = torch.zeros_like(x).index_add_(0, target, messages)
        if kind == "gin":
            h = F.relu(h @ tensor("mlp.0.weight").T + tensor("mlp.0.bias"))
            h = h @ tensor("mlp.2.weight").T + tensor("mlp.2.bias")
        if kind == "graphsage":
            h = h / degree[:, None]
            h = h / h.norm(dim=1, keepdim=True)
        norm = f"batch_norms.{i}."
        h = (h - state[norm + "running_mean"]) / (state[norm + "running_var"] + 1e-5).sqrt()
        h = h * state[norm + "weight"] + state[norm + "bias"]
        x = h if i == 4 else F.relu(h)
        found.append(x)
    return found


def published(network) -> dict[str, Tensor]:
    """Return the tensors of a network under their released names."""
    names = {}
    for name, tensor in network.state_dict().items():
        if name.startswith("head."):
            continue
        name = name.removeprefix("embedding.")
        if ".norm." in name:
            name = name.replace("layers.", "batch_norms.").replace(".norm.", ".")
        names[name.replace("layers.", "gnns.")] = tensor
    return names


def shake(network) -> None:
    """Fill all tensors, batch-norm statistics included, with random values."""
    draw = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            low = 0.5 if name.endswith("running_var") else -0.5
            tensor.uniform_(low, low + 1, generator=draw)


def check(kind: str, network, state: dict[str, Tensor]) -> None:
    graphs = molecules(7, 1, 12, 3)
    network.double().eval()
    with Taps(network, [*(f"layers.{i}" for i in range(5)), "pool"]) as taps, torch.no_grad():
        logits = network(graphs)
    state = {name: t.double() if t.is_floating_point() else t for name, t in state.items()}
    layers = plain(kind, state, graphs)
    for i, features in enumerate(layers):
        torch.testing.assert_close(taps.outputs()[f"layers.{i}"], features, rtol=1e-10, atol=1e-10)
    means = torch.stack([layers[-1][graphs.groups == i].mean(dim=0) for i in range(4)])
    torch.testing.assert_close(taps.outputs()["pool"], means, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(logits, network.head(means), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", WEIGHT_URLS)
def test_features_are_those_of_a_plain_implementation(kind):
    network = build(kind).module
    shake(network)
    check(kind, network, published(network))


@pytest.mark.parametrize("kind", ["graphsage", "gcn"])
def test_released_weights_load_and_give_the_features_of_a_plain_implementation(kind):
    file = RELEASED_FILES / f"{kind}_supervised_contextpred.pth"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    backbone = build(kind, weights=file)
    assert backbone.notes == (f"weights {file}: 47 of 47 tensors matched",)
    check(kind, backbone.module, torch.load(file, map_location="cpu", weights_only=True))


@pytest.mark.parametrize("kind", WEIGHT_URLS)
def test_published_names_find_their_places(kind, tmp_path):
    network = build(kind).module
    shake(network)
    torch.save({f"gnn.{name}": t for name, t in published(network).items()}, tmp_path / "w.pth")
    loaded = build(kind, weights=tmp_path / "w.pth")
    for name, tensor in loaded.module.state_dict().items():
        assert name.startswith("head.") or torch.equal(tensor, network.state_dict()[name])


def test_graphs_of_a_batch_are_independent():
    network = build("graphsage").module.eval()
    both, alone = molecules(6, 5), molecules(6)
    inside = both.edge_index[0] < 6
    assert torch.equal(both.edge_index[:, inside], alone.edge_index)
    alone.edge_attr.copy_(both.edge_attr[inside])
    alone.x.copy_(both.x[:6])
    torch.testing.assert_close(network(both)[:1], network(alone))


def test_the_gradient_reaches_every_parameter():
    for kind in WEIGHT_URLS:
        network = build(kind).module.train()
        network(molecules(20, 20, 20)).square().sum().backward()
        still = [name for name, p in network.named_parameters() if not p.grad.any()]
        # A bias before batch norm in train mode changes nothing.
        assert [name for name in still if not name.endswith("bias")] == []


def test_the_default_weights_are_the_released_ones(monkeypatch):
    network = build("gin").module
    shake(network)
    asked = []

    def fetch(url: str, **options):
        asked.append((url, options["file_name"], options["weights_only"]))
        return published(network)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    found = load_graph_backbone("pretrain-gnns/gin", num_outputs=2, spec=ATOMS)
    assert torch.equal(found.module.layers[4].mlp[2].weight, network.layers[4].mlp[2].weight)
    assert found.module.head.out_features == 2
    ((url, file, safe),) = asked
    assert "/snap-stanford/pretrain-gnns/8b20528" in url
    assert url.endswith("/chem/model_gin/supervised_contextpred.pth")
    assert file == "pretrain-gnns-gin-supervised_contextpred.pth"
    assert safe


def test_a_failed_download_is_explained(monkeypatch):
    def fetch(url: str, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    with pytest.raises(UserError, match=r"'pretrain-gnns/gin' could not be downloaded \(no route"):
        load_graph_backbone("pretrain-gnns/gin", num_outputs=2, spec=ATOMS)


def test_a_file_of_another_network_is_rejected(tmp_path):
    torch.save(build("gcn").module.state_dict(), tmp_path / "gcn.pth")
    with pytest.raises(UserError, match=r"the file does not fit pretrain-gnns/gin: .* tensors"):
        build("gin", weights=tmp_path / "gcn.pth")


def test_unknown_names_and_other_inputs_are_rejected():
    with pytest.raises(UserError, match=r"unknown model 'pretrain-gnns/gni'.*pretrain-gnns/gin"):
        build("gni")
    with pytest.raises(UserError, match=r"is not for graphs.*pretrain-gnns/"):
        load_graph_backbone("resnet18", num_outputs=2, spec=ATOMS)
    numbers = GraphSpec(node_features="numbers", num_node_features=3)
    with pytest.raises(UserError, match=r"for molecules.*pyg/GIN"):
        load_graph_backbone("pretrain-gnns/gin", num_outputs=2, spec=numbers)
    with pytest.raises(UserError, match="'pretrain-gnns/gin' is for graphs, and these are images"):
        load_backbone("pretrain-gnns/gin", num_outputs=2)


def test_auto_taps_are_the_last_four_layers():
    backbone = build("gin")
    assert auto_taps(backbone.module) == tuple(f"layers.{i}" for i in (1, 2, 3, 4))
    graph = backbone.input_spec.example()
    with Taps(backbone.module.eval(), ["layers.1", "pool"]) as taps, torch.no_grad():
        assert backbone.module(graph).shape == (1, 3)
    assert [tuple(f.shape) for f in taps.outputs().values()] == [(2, 300), (1, 300)]


def test_dropout_is_zero():
    network = build("graphsage").module.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
    graphs = molecules(5, 5)
    assert torch.equal(network(graphs), network(graphs))


class Trap:
    """Creates a folder when it is unpickled without protection."""

    def __reduce__(self):
        return os.mkdir, ("marker",)


def test_a_downloaded_file_runs_no_code(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(Trap(), "hub/checkpoints/pretrain-gnns-gin-supervised_contextpred.pth")
    with pytest.raises(UserError, match=r"'pretrain-gnns/gin' cannot be loaded \(Weights only"):
        load_graph_backbone("pretrain-gnns/gin", num_outputs=2, spec=ATOMS)
    assert not Path("marker").exists()
