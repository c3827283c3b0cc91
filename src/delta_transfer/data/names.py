"""The prefixes of the names of dataset collections."""

TORCHVISION, HUB, MOLECULENET, TU = "torchvision/", "hf/", "moleculenet/", "tu/"
